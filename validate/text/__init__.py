"""The published Thinker judged by text: tasks of EleutherAI's lm-eval, such as MMLU, and perplexity."""
