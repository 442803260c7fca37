"""Icons whose own name does not lead to what they draw: set -> icon -> the label of the concept (as `slug` spells it).

"" says that an icon draws no concept, or draws it too badly to learn from. Found by looking at every icon that the
rules in `emoji_concepts` leave without a concept, and at every picture that they give one.
"""

_FLUENT = {
    "knocked-out-face": "face-with-crossed-out-eyes",
    "man-blonde-hair": "man-blond-hair",
    "woman-blonde-hair": "woman-blond-hair",
    "person-blonde-hair": "person-blond-hair",
    "man-merpeople": "merman",
    "woman-merpeople": "mermaid",
    "person-merpeople": "merperson",
    "man-with-bunny-ears": "men-with-bunny-ears",
    "person-with-bunny-ears": "people-with-bunny-ears",
    "person-elf": "elf",
    "person-fairy": "fairy",
    "person-genie": "genie",
    "person-mage": "mage",
    "person-superhero": "superhero",
    "person-supervillain": "supervillain",
    "person-vampire": "vampire",
    "person-zombie": "zombie",
    "person-wrestling": "people-wrestling",
    "phoenix-bird": "phoenix",
    "piata": "pinata",
    "red-triangle": "red-triangle-pointed-up",
}

_HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
_CLOCKS = {f"clock{i or 12}oclock": f"{hour}-oclock" for i, hour in enumerate(_HOURS)} | {
    f"clock{i or 12}thirty": f"{hour}-thirty" for i, hour in enumerate(_HOURS)
}

_FXEMOJI_THINGS = {
    "acorn": "chestnut", "beachumbrella": "beach-with-umbrella", "bellcancellation": "bell-with-slash",
    "bolt": "high-voltage", "bookmarktab": "bookmark-tabs", "bow": "ribbon", "cellphone": "mobile-phone",
    "chartdownwardstrend": "chart-decreasing", "chartupwardstrend": "chart-increasing",
    "chartupwardstrendyen": "chart-increasing-with-yen", "chilipepper": "hot-pepper",
    "closedmailboxlowered": "closed-mailbox-with-lowered-flag", "confetti": "confetti-ball",
    "closedmailboxraised": "closed-mailbox-with-raised-flag", "controlknob": "control-knobs",
    "openmailboxlowered": "open-mailbox-with-lowered-flag", "openmailboxraised": "open-mailbox-with-raised-flag",
    "construction": "building-construction", "constructionsign": "construction", "darksunglasses": "sunglasses",
    "envelopedownarrowabove": "envelope-with-arrow", "evergreen": "evergreen-tree", "fallingleaf": "fallen-leaf",
    "fishcakeswirl": "fish-cake-with-swirl", "floppydisk2": "floppy-disk", "forkknife": "fork-and-knife-with-plate",
    "handheldvideocamera": "video-camera", "heels": "high-heeled-shoe", "highspeedtrainbulletnose": "bullet-train",
    "keyboard": "", "wiredkeyboard": "keyboard", "leaffluttering": "leaf-fluttering-in-wind",
    "leftmagnifyingglass": "magnifying-glass-tilted-left", "rightmagnifyingglass": "magnifying-glass-tilted-right",
    "lockandkey": "locked-with-key", "lowerleftpen": "pen", "manltepiececlock": "mantelpiece-clock",
    "mansshirt": "t-shirt", "mensrunner": "running-shoe", "mensshoe": "mans-shoe", "outbox": "outbox-tray",
    "notebookdecorativecover": "notebook-with-decorative-cover", "phonerightarrowleft": "mobile-phone-with-arrow",
    "pinkwallet": "purse", "present": "wrapped-gift", "reminder": "reminder-ribbon", "sandals": "womans-sandal",
    "silhouetteohjapan": "map-of-japan", "snowmountains": "snow-capped-mountain",
    "speaker3soundwaves": "speaker-high-volume", "speakeronesoundwave": "speaker-medium-volume",
    "speakercancellation": "muted-speaker", "stormcloud": "cloud-with-lightning", "studiomic": "studio-microphone",
    "sunraincloud": "sun-behind-rain-cloud", "sunrays": "sun", "telephonereceiver2": "telephone-receiver",
    "tennisball": "tennis", "toykotower": "tokyo-tower", "videocasette": "videocassette",
    "waningbibbousmoon": "waning-gibbous-moon", "wave": "water-wave", "womansshirt": "womans-clothes",
    "banknotedollar": "dollar-banknote", "banknoteeuro": "euro-banknote", "banknotepound": "pound-banknote",
    "banknoteyen": "yen-banknote", "americasglobe": "globe-showing-americas",
    "asiaaustraliaglobe": "globe-showing-asia-australia", "europeafricaglobe": "globe-showing-europe-africa",
    "meridianglobe": "globe-with-meridians", "potablewatersystem": "potable-water",
    "nooneunder18symbol": "no-one-under-eighteen", "tramcar": "", "heartblue": "",
}  # fmt: skip

_FXEMOJI_ANIMALS = {
    "bunny": "rabbit-face", "bunnyside": "rabbit", "cat": "cat-face", "catside": "cat", "dog": "dog-face",
    "dogside": "dog", "tiger": "tiger-face", "tigerside": "tiger", "mouse": "mouse-face", "mouseside": "mouse",
    "pig": "pig-face", "pigside": "pig", "pigsnout": "pig-nose", "dragonhead": "dragon-face", "dragonside": "dragon",
    "leopardside": "leopard", "hampster": "hamster", "frontfacingchick": "front-facing-baby-chick",
    "spurtingwhale": "spouting-whale", "monkeyhear": "hear-no-evil-monkey", "monkeysee": "see-no-evil-monkey",
    "monkeyspeak": "speak-no-evil-monkey",
}  # fmt: skip

_FXEMOJI_FACES = {
    "anguish": "anguished-face", "crying": "crying-face", "devilhorns": "smiling-face-with-horns",
    "dissapointedrelief": "sad-but-relieved-face", "frownmouth": "frowning-face-with-open-mouth",
    "grineyes": "grinning-face-with-smiling-eyes", "grinsquint": "grinning-squinting-face",
    "grinsweat": "grinning-face-with-sweat", "grintears": "face-with-tears-of-joy",
    "grinwide": "grinning-face-with-big-eyes", "japaneseangrymask": "goblin",
    "kissclosedeyes": "kissing-face-with-closed-eyes", "kisseyes": "kissing-face-with-smiling-eyes", "kiss": "",
    "loudlycrying": "loudly-crying-face", "perservere": "persevering-face", "pouting": "enraged-face",
    "pout": "person-pouting", "screamfear": "face-screaming-in-fear", "smallfrown": "slightly-frowning-face",
    "smallsmile": "slightly-smiling-face", "smileeyes": "smiling-face-with-smiling-eyes",
    "smiletongue": "face-savoring-food", "sunglasses": "smiling-face-with-sunglasses",
    "tongueoutwink": "winking-face-with-tongue", "winking": "winking-face", "sweatsplash": "sweat-droplets",
    "speechbubble": "speech-balloon", "thoughtbaloon": "thought-balloon", "2hearts": "two-hearts",
    "heartarrow": "heart-with-arrow", "heartgreen": "green-heart", "heartpurple": "purple-heart",
    "heartyellow": "yellow-heart", "blackskullcrossbones": "skull-and-crossbones",
}  # fmt: skip

_FXEMOJI_PEOPLE = {
    "aok": "ok-hand", "blonde": "person-blond-hair", "bowing": "person-bowing", "bride": "woman-with-veil",
    "bunny-ears": "people-with-bunny-ears", "construct": "construction-worker", "contact": "bust-in-silhouette",
    "contact2": "busts-in-silhouette", "couple": "couple-with-heart", "fistedhand": "oncoming-fist",
    "flexbicep": "flexed-biceps", "frown": "person-frowning", "girlgirl": "women-holding-hands",
    "girlguy": "woman-and-man-holding-hands", "guyguy": "men-holding-hands", "gma": "old-woman", "gpa": "old-man",
    "guapimao": "person-with-skullcap", "hands": "open-hands", "handup": "person-raising-hand",
    "headmassage": "person-getting-massage", "high5": "raising-hands", "index": "index-pointing-up",
    "left": "backhand-index-pointing-left", "right": "backhand-index-pointing-right",
    "up": "backhand-index-pointing-up", "down": "backhand-index-pointing-down", "nogesture": "person-gesturing-no",
    "okgesture": "person-gesturing-ok", "raisedhandpartfingers": "vulcan-salute",
    "raisedhandsfingerssplayed": "hand-with-fingers-splayed", "sleuthspy": "detective",
    "turban": "person-wearing-turban", "waitress": "person-tipping-hand", "waving": "waving-hand",
}  # fmt: skip

_FXEMOJI_SIGNS = {
    "backwithleftwardsarrow": "back-arrow", "endwithleftwardsarrow": "end-arrow", "onarrowleftright": "on-arrow",
    "soonwithrightarrow": "soon-arrow", "topwithupwardsarrow": "top-arrow", "squaredup": "up-button",
    "doubleexclaimationmark": "double-exclamation-mark", "exclaimationquestionmark": "exclamation-question-mark",
    "heavylatincross": "latin-cross", "heavymultiplicationsymbol": "multiply", "saggitarius": "sagittarius",
    "sixpointedstarwithdot": "dotted-six-pointed-star", "negativesquaredlatincaptiala": "a-button-blood-type",
    "negativesquaredlatincaptialb": "b-button-blood-type", "negativesquaredlatincaptialo": "o-button-blood-type",
    "chineseflag": "flag-china", "franceflag": "flag-france", "greatbritainflag": "flag-united-kingdom",
    "italianflag": "flag-italy", "japanflag": "flag-japan", "koreaflag": "flag-south-korea",
    "russianflag": "flag-russia", "spanishflag": "flag-spain",
}  # fmt: skip

DRAWS = {
    "fluent-emoji": _FLUENT,
    "fluent-emoji-flat": _FLUENT,
    "noto-v1": {"up-exclamation-button": "up-button", "exclamation-mark": "red-exclamation-mark"},
    "emojione": {
        "a-button": "a-button-blood-type",
        "ab-button": "ab-button-blood-type",
        "b-button": "b-button-blood-type",
        "o-button": "o-button-blood-type",
        "exclamation-mark": "red-exclamation-mark",
        "flag-for-myanmar": "flag-myanmar-burma",
        "flag-for-turkey": "flag-turkiye",
        "smiling-cat-face-with-heart-eyes": "smiling-cat-with-heart-eyes",
        "up-text-button": "up-button",
    },
    "fxemoji": _CLOCKS | _FXEMOJI_THINGS | _FXEMOJI_ANIMALS | _FXEMOJI_FACES | _FXEMOJI_PEOPLE | _FXEMOJI_SIGNS,
}
