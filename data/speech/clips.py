"""The clips: what is said in them, by which voice, and how it is recorded; and sounds that are no speech."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["BABBLE", "CALIBRATION", "CLIPS", "HELD_OUT", "Clip", "Sound", "Voice"]

CALIBRATION, HELD_OUT = "calibration", "held_out"


class Voice(NamedTuple):
    """Someone who says something.

    Attributes:
        voice: Language and variant of espeak-ng.
        text: Sentence in SSML.
        speed: Words a minute.
        pitch: Pitch, 0 to 99.
    """

    voice: str
    text: str
    speed: int = 170
    pitch: int = 50


class Clip(NamedTuple):
    """A sentence, with the settings of its voice and of its recording.

    Attributes:
        split: Folder: ``calibration`` or ``held_out``.
        voice: Language and variant of espeak-ng.
        word: Last word of the file name.
        text: Sentence in SSML.
        speed: Words a minute.
        pitch: Pitch, 0 to 99.
        peak_db: Peak of the finished clip in dBFS.
        noise: Background: ``babble``, a sound of ``sounds.SOUNDS``, or none.
        snr_db: Speech over noise in decibels.
        room_s: Reverberation time (RT60) in seconds; 0 for no room.
        overdrive_db: Decibels by which the peak exceeds the level at which the clip is cut off.
        beside: Another voice, which speaks at the same time.
    """

    split: str
    voice: str
    word: str
    text: str
    speed: int = 170
    pitch: int = 50
    peak_db: float = -6.0
    noise: str = ""
    snr_db: float = math.inf
    room_s: float = 0.0
    overdrive_db: float = 0.0
    beside: Voice | None = None

    @property
    def name(self) -> str:
        """Name of the file, without its suffix."""
        return f"{self.voice.replace('+', '-').lower()}-{self.word}"


class Sound(NamedTuple):
    """A sound that is no speech.

    Attributes:
        split: Folder: ``calibration`` or ``held_out``.
        kind: ``babble``, or a sound of ``sounds.SOUNDS``.
        seconds: Length in seconds.
        peak_db: Peak of the clip in dBFS.
    """

    split: str
    kind: str
    seconds: float
    peak_db: float = -6.0

    @property
    def name(self) -> str:
        """Name of the file, without its suffix."""
        return f"sound-{self.kind}"


BABBLE = (
    Voice("en-us+m2", "and then she told me that the whole thing had been moved to another floor, which nobody knew"),
    Voice(
        "de+f2", "ich habe ihm schon dreimal gesagt, dass die Rechnung nicht stimmt, aber er hört ja nie zu", 185, 60
    ),
    Voice("fr-fr+m4", "on prend deux cafés et puis on s'en va, parce que le train part dans vingt minutes", 160, 40),
    Voice("es+f3", "pues no lo sé, pregúntale a tu hermana, ella estuvo allí toda la tarde con los niños", 200, 65),
    Voice("it+m1", "ma dai, non è possibile, ieri erano ancora chiusi e oggi c'è già la fila fuori", 180, 35),
    Voice("en-gb+f1", "four of the large ones, please, and one without onions, if that is no trouble", 150, 55),
)

CLIPS: tuple[Clip | Sound, ...] = (
    Clip(
        CALIBRATION, "en-us+f2", "harbour",
        "The harbour was quiet all morning, and two small boats came home just before the rain.",
    ),
    Clip(
        CALIBRATION, "en-us+m3", "kitchen",
        'Put the kettle on, please. <break time="500ms"/> I will slice the bread.',
        speed=155, pitch=40, peak_db=-12, noise="pink", snr_db=30,
    ),
    Clip(CALIBRATION, "en-us+m1", "score", "Seventeen points to nine!", speed=235, pitch=65, peak_db=-0.5),
    Clip(
        CALIBRATION, "en-gb+f4", "library",
        "The library closes at half past six on Thursdays, and at noon on the last day of the month.",
        speed=180, peak_db=-32, noise="white", snr_db=25,
    ),
    Clip(
        CALIBRATION, "en-gb+m7", "platform",
        "The next train leaves from platform nine, and stops only at the coast.",
        speed=165, pitch=35, room_s=0.7, peak_db=-8, noise="pink", snr_db=22,
    ),
    Clip(
        CALIBRATION, "en-gb-scotland+m4", "weather",
        "A cold wind from the north, with snow on the higher hills, and perhaps a little sunshine by the evening.",
        speed=200, pitch=30,
    ),
    Clip(
        CALIBRATION, "de+f3", "garten",
        "Im Garten hinter dem Haus steht ein alter Apfelbaum, der jedes Jahr im Mai blüht.",
        peak_db=-10, noise="white", snr_db=35,
    ),
    Clip(CALIBRATION, "de+m2", "werkstatt", "Wo ist der kleine Schraubenzieher?", speed=210, pitch=45, peak_db=-2),
    Clip(
        CALIBRATION, "es+f1", "mercado",
        'En el mercado venden naranjas dulces, <break time="400ms"/> pan recién hecho y queso.',
        speed=165, pitch=60, noise="pink", snr_db=18,
    ),
    Clip(CALIBRATION, "es-419+m5", "puente", "El puente nuevo cruza el río.", speed=150, pitch=40, peak_db=-26),
    Clip(
        CALIBRATION, "fr-fr+f1", "boulangerie", "La boulangerie ouvre à sept heures, sauf le lundi.",
        speed=185, pitch=70, peak_db=-1,
    ),
    Clip(
        CALIBRATION, "fr-fr+m6", "orage",
        "Après l'orage, les enfants sont sortis jouer dans les flaques, et personne ne les a grondés.",
        speed=160, peak_db=-15, noise="white", snr_db=40,
    ),
    Clip(
        CALIBRATION, "cmn-latn-pinyin+f2", "chayuan",
        "jin1tian1 xia4wu3 wo3men5 qu4 shan1shang5 kan4 cha2yuan2, wan3shang5 hui2lai2 chi1fan4.",
        speed=170, pitch=55, peak_db=-9, noise="pink", snr_db=28,
    ),
    Clip(
        CALIBRATION, "cmn-latn-pinyin+m3", "chezhan", "qing3wen4, huo3che1zhan4 zen3me5 zou3?",
        speed=190, pitch=35, peak_db=-4,
    ),
    Clip(
        CALIBRATION, "it+f4", "finestra",
        "Apri la finestra: fuori si sente il mare, e più lontano una campana.",
        speed=140, pitch=45, peak_db=-20, noise="pink", snr_db=15,
    ),
    Clip(
        CALIBRATION, "en-us+f1", "logbook",
        "The keeper wrote three lines each evening: the wind, the sea, and the oil. "
        '<break time="700ms"/> On the ninth of March he wrote only one. '
        "The lamp, he said, had burned for eleven hours, and a bird had come in through the gallery door, "
        "sat on the railing until it was light, and left without having made a sound.",
        speed=150, pitch=55, peak_db=-10,
    ),
    Clip(
        CALIBRATION, "en-gb+m2", "lecture",
        "If we divide both sides by the number of rows, what is left is an average; and an average, as we saw last "
        "week, hides whatever is rare. So look at the largest value as well, and at the place where it stands. "
        "Any questions so far? No? Then let us go on with the second example.",
        speed=165, pitch=38, room_s=0.9, peak_db=-9, noise="pink", snr_db=24,
    ),
    Clip(
        CALIBRATION, "de+m5", "wegbeschreibung",
        "Sie gehen hier geradeaus bis zur Ampel, dann links über die Brücke und immer am Wasser entlang. "
        "Nach ungefähr zehn Minuten sehen Sie rechts ein gelbes Haus; dahinter beginnt der Weg zum Bahnhof.",
        speed=180, pitch=42, peak_db=-7, noise="babble", snr_db=14,
    ),
    Clip(
        CALIBRATION, "fr-fr+f4", "recette",
        "Faites fondre le beurre à feu doux, ajoutez la farine d'un seul coup, et remuez jusqu'à ce que la pâte se "
        "détache. Hors du feu, incorporez les œufs un par un; puis laissez reposer une demi-heure au frais.",
        speed=170, pitch=62, peak_db=-12, noise="hum", snr_db=26,
    ),
    Clip(
        CALIBRATION, "es+m3", "noticias",
        "Buenas noches. La nieve ha cortado esta tarde cuatro carreteras de montaña. Los colegios de la comarca "
        "permanecerán cerrados mañana, y se recomienda no viajar si no es imprescindible.",
        speed=205, pitch=44, peak_db=-1, noise="band", snr_db=15,
    ),
    Clip(
        CALIBRATION, "it+f2", "museo",
        "Nella terza sala si trovano gli strumenti: un telescopio di ottone, due bussole e un orologio che segna "
        "ancora l'ora giusta due volte al giorno. Vi prego di non toccare le vetrine.",
        speed=160, pitch=58, room_s=1.4, peak_db=-11,
    ),
    Clip(
        CALIBRATION, "ja+f3", "densha",
        "つぎの でんしゃは ごじ じゅっぷんに きます。あめが ふって いるので、あしもとに きを つけて ください。",
        speed=165, pitch=60, peak_db=-6, noise="pink", snr_db=26,
    ),
    Clip(CALIBRATION, "ja+m4", "asagohan", "あさごはんは もう たべましたか。", speed=190, pitch=40, peak_db=-18),
    Clip(
        CALIBRATION, "ko+f1", "sanchaek",
        "저녁을 먹고 나서 강가를 따라 한 시간쯤 걸었습니다. 바람이 조금 차가웠습니다.",
        speed=170, pitch=58, peak_db=-8,
    ),
    Clip(CALIBRATION, "ko+m6", "yeolsoe", "열쇠를 어디에 두었지?", speed=200, pitch=38, peak_db=-3, room_s=0.5),
    Clip(
        CALIBRATION, "ru+m3", "snegopad",
        "К вечеру снегопад усилился, и последний автобус ушёл без нас. Пришлось идти пешком через лес.",
        speed=170, pitch=40, peak_db=-7, noise="white", snr_db=28,
    ),
    Clip(CALIBRATION, "ru+f2", "pismo", "Я получила твоё письмо только вчера.", speed=160, pitch=62, peak_db=-15),
    Clip(
        CALIBRATION, "ar+m2", "souq", "السوق مفتوح كل يوم من الصباح حتى المساء، ما عدا يوم الجمعة.",
        speed=160, pitch=45, peak_db=-6, noise="babble", snr_db=18,
    ),
    Clip(
        CALIBRATION, "hi+f4", "chai", "चाय तैयार है, लेकिन दूध थोड़ा कम है। क्या मैं दुकान से और ले आऊँ?",
        speed=175, pitch=57, peak_db=-9,
    ),
    Clip(
        CALIBRATION, "tr+m1", "vapur", "Vapur iskeleden on dakika geç kalktı, ama deniz çok sakindi.",
        speed=180, pitch=46, peak_db=-5, noise="hum", snr_db=20,
    ),
    Clip(
        CALIBRATION, "vi+f1", "chosom", "Sáng nay mẹ đi chợ sớm, mua rau, cá tươi và một bó hoa cúc.",
        speed=165, pitch=60, peak_db=-10,
    ),
    Clip(
        CALIBRATION, "pl+m7", "zegar", "Zegar na wieży spóźnia się o trzy minuty, i wszyscy już się przyzwyczaili.",
        speed=185, pitch=37, peak_db=-13, room_s=0.6,
    ),
    Clip(
        CALIBRATION, "nl+f3", "fiets", "Zet je fiets maar achter het huis, daar staat hij droog.",
        speed=180, pitch=56, peak_db=-8, noise="rain", snr_db=16,
    ),
    Clip(CALIBRATION, "sv+m1", "bat", "Båten ligger kvar vid bryggan tills isen går.", speed=165, peak_db=-22),
    Clip(
        CALIBRATION, "fi+f4", "metsa", "Metsässä on hiljaista, vain tikka hakkaa vanhaa mäntyä.",
        speed=160, pitch=58, peak_db=-6,
    ),
    Clip(
        CALIBRATION, "el+m6", "thalassa", "Η θάλασσα ήταν ήρεμη και το νησί φαινόταν πολύ κοντά.",
        speed=175, pitch=42, peak_db=-4, noise="pink", snr_db=12,
    ),
    Clip(
        CALIBRATION, "id+f2", "hujan", "Kalau hujan turun lagi, kita tunggu saja di warung sebelah.",
        speed=185, pitch=60, peak_db=-7,
    ),
    Clip(
        CALIBRATION, "uk+f1", "sad", "Увечері ми поливали сад, і пахло мокрою землею.",
        speed=170, pitch=55, peak_db=-16, noise="white", snr_db=20,
    ),
    Clip(
        CALIBRATION, "cs+m4", "vlak", "Vlak na třetí koleji bude o čtvrt hodiny zpožděn.",
        speed=195, peak_db=-2, room_s=1.0,
    ),
    Clip(CALIBRATION, "sw+m3", "shule", "Watoto wanatembea kwenda shule kabla ya jua kuchomoza.", pitch=48, peak_db=-9),
    Clip(
        CALIBRATION, "en-us+whisper", "secret",
        "Be quiet, they are still asleep. The present is behind the curtain.", speed=150, peak_db=-14,
    ),
    Clip(
        CALIBRATION, "de+whisperf", "leise", "Nicht so laut, sonst wacht der Hund auf.",
        speed=160, peak_db=-20, noise="faint", snr_db=30,
    ),
    Clip(
        CALIBRATION, "en-us+m7", "auction",
        "Forty, forty five, fifty on my left, fifty five, sixty, do I hear sixty five, sixty five at the back, sold!",
        speed=320, pitch=60, peak_db=-1, overdrive_db=6,
    ),
    Clip(
        CALIBRATION, "en-gb+m1", "dictation", "One, comma, the roof. <break time='600ms'/> Two, comma, the gutters.",
        speed=90, pitch=42, peak_db=-9,
    ),
    Clip(
        CALIBRATION, "es-419+f2", "gol", "¡Gol, gol, gol! ¡En el último minuto!",
        speed=230, pitch=80, peak_db=-0.3, overdrive_db=12, noise="babble", snr_db=8,
    ),
    Clip(
        CALIBRATION, "en-gb-scotland+f1", "argument",
        "I said Tuesday, and I wrote it on the calendar, so do not tell me that you could not have known.",
        speed=190, pitch=60, peak_db=-4,
        beside=Voice("en-us+m4", "Nobody looks at that calendar, it still shows the month of March.", 185, 40),
    ),
    Clip(
        CALIBRATION, "cmn-latn-pinyin+f4", "dianhua",
        "ni3 shuo1 shen2me5? zhe4li3 tai4 chao3, wo3 ting1 bu4 qing1chu5, deng3 yi2xia4 zai4 da3 gei3 ni3.",
        speed=180, pitch=55, peak_db=-6, noise="babble", snr_db=6,
        beside=Voice("fr-fr+m2", "Attention au départ du train en voie douze.", 170, 45),
    ),
    Clip(
        CALIBRATION, "en-us+f4", "song", "Hear the drum and hear the bell, all is over, all is well.",
        speed=120, pitch=75, peak_db=-3, noise="band", snr_db=4,
    ),
    Sound(CALIBRATION, "chords", 11, -9),
    Sound(CALIBRATION, "melody", 10, -5),
    Sound(CALIBRATION, "drums", 7, -2),
    Sound(CALIBRATION, "band", 14, -7),
    Sound(CALIBRATION, "sweep", 5, -12),
    Sound(CALIBRATION, "white", 2.5, -10),
    Sound(CALIBRATION, "pink", 4, -15),
    Sound(CALIBRATION, "hum", 4, -20),
    Sound(CALIBRATION, "rain", 5, -18),
    Sound(CALIBRATION, "babble", 12, -8),
    Sound(CALIBRATION, "faint", 4, -70),
    Sound(CALIBRATION, "silence", 3),
    Clip(
        HELD_OUT, "en-gb-x-rp+f5", "clock",
        "Somebody wound the clock in the hall last night, but nobody remembers who it was.",
        speed=175, pitch=55, peak_db=-7, noise="pink", snr_db=24,
    ),
    Clip(HELD_OUT, "de+m8", "fahrrad", "Mein Fahrrad hat seit gestern einen Platten.", speed=190, peak_db=-24),
    Clip(
        HELD_OUT, "cmn-latn-pinyin+Andrea", "xiayu",
        'wai4mian4 xia4yu3 le5, <break time="600ms"/> bie2 wang4 le5 dai4 san3.',
        speed=150, peak_db=-3, noise="white", snr_db=32,
    ),
    Clip(
        HELD_OUT, "fr-be+Michael", "escalier",
        "Attention à la dernière marche de l'escalier, elle est plus haute.",
        speed=175, pitch=40, room_s=0.4, peak_db=-5,
    ),
    Clip(
        HELD_OUT, "pt-br+linda", "cafe", "O café está quente demais, espere um pouco antes de beber.",
        speed=200, pitch=60, peak_db=-14, noise="pink", snr_db=20,
    ),
)  # fmt: skip
