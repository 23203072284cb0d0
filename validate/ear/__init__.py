"""Speech judged by ear: two chains reply to the same questions; the replies are transcribed, rated and compared."""
