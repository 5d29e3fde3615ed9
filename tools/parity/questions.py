"""20 made-up questions in the published formats, three texts, and what a model is shown of them."""

import re
from collections import namedtuple

# Tokens of a sequence of the texts: each text becomes several, the last of them shorter.
TEXT_LENGTH = 32

HELLASWAG = [
    {
        "activity_label": "Repairing a bicycle",
        "ctx_a": "A man turns his bicycle upside down on the pavement.",
        "ctx_b": "he",
        "endings": [
            "takes off the front wheel and pulls out the tube.",
            "pours the bicycle into a tall glass and drinks it.",
            "reads a newspaper to the saddle until it falls asleep.",
            "sits down on the wheels and rides away over the roofs.",
        ],
        "label": 0,
    },
    {
        "activity_label": "Feeding ducks",
        "ctx_a": "An old woman in a green coat walks to the pond with a paper bag.  The ducks come closer.",
        "ctx_b": "the woman, who comes from Chicago and is called O'Neill,",
        "endings": [
            "paints a fence behind the pond in two colours.",
            "takes some oats out of the bag and throws them on the water.",
            "puts on the bag and swims across.",
            "counts to ten in French and leaves on a camel.",
        ],
        "label": "1",
    },
    {
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to keep herbs fresh [title] Cut the stems. [step] Use sharp scissors, and take off a "
        "finger's width. [substeps]",
        "ctx_b": "",
        "endings": [
            "Throw the scissors away after every stem. [title] Buy new ones.",
            "[substeps] Never let the herbs see the scissors.",
            "Put the stems in a glass of cold water. [title] Cover the leaves. [step] A loose bag will do. [substeps]",
            "Fry the glass [title] and serve it with salt.",
        ],
        "label": 2,
    },
    {
        "activity_label": "Snow",
        "ctx_a": "It snows.",
        "endings": ["Children build a snowman.", "Fish climb trees.", "The desert sings.", "A spoon votes."],
        "label": "0",
    },
    {
        "activity_label": "Playing the cello",
        "ctx_a": "A girl sits on a chair in an empty hall and tunes her cello. She closes her eyes, takes a deep "
        "breath, and waits until the last people have found their seats. Then the lamps above the stage go out one by "
        "one, and only a small light next to the notes stays on.",
        "ctx_b": "she lifts her bow and",
        "endings": [
            "hammers a nail into the floor of the hall.",
            "sells the first row of seats to a passing sailor.",
            "boils an egg for the conductor, who is in the café.",
            "begins to play, very softly, a long and slow melody.",
        ],
        "label": 3,
    },
]

WINOGRANDE = [
    {
        "sentence": "The suitcase did not fit into the locker because the _ was too small.",
        "option1": "suitcase",
        "option2": "locker",
        "answer": "2",
    },
    {
        "sentence": "_ asked Maria for the recipe, because Johanna's soup had turned out far better than expected.",
        "option1": "Maria",
        "option2": "Johanna",
        "answer": 1,
    },
    {
        "sentence": "Ben lent Carl his tent for the long weekend in the hills, and on Monday it was returned to _",
        "option1": "Ben",
        "option2": "Carl",
        "answer": "1",
    },
    {
        "sentence": "The gardener (_) watered the roses while the plumber waited in the kitchen, "
        "so that in the evening the bed was wet and the tap still dripped.",
        "option1": "a patient woman from the village",
        "option2": "a broken pipe",
        "answer": "1",
    },
    {
        "sentence": "The violin sounds better than the trumpet in this room, since the  _  is not as loud.",
        "option1": "violin",
        "option2": "trumpet",
        "answer": 1,
    },
]

SIQA = [
    {
        "context": "Robin forgot the keys in the office and rang at the neighbour's door late in the evening.",
        "question": "What did Robin want?",
        "answerA": "a place to wait",
        "answerB": "to learn the piano",
        "answerC": "to complain about the weather",
        "label": "1",
    },
    {
        "context": "Kim had practised the speech for three weeks and did not stumble once.",
        "question": "How would Kim feel afterwards?",
        "answerA": "hungry for stones",
        "answerB": "proud and relieved",
        "answerC": "ashamed",
        "label": "2",
    },
    {
        "context": "Alex saw that the new pupil stood alone in the yard.",
        "question": "What will Alex do next?",
        "answerA": "call the fire brigade",
        "answerB": "lock the gate",
        "answerC": "go over and ask whether they want to play together",
        "correct": "C",
    },
    {
        "context": "After a heated discussion about who should wash up, Sasha simply did it, and then — without a "
        "word — made tea for everybody in the flat, even for the guests who had come without being asked.",
        "question": "How would you describe Sasha?",
        "answerA": "cruel",
        "answerB": "kind",
        "answerC": "made of glass, as far as one can see from here",
        "label": 2,
    },
    {
        "context": "Jo lost.",
        "question": "Why?",
        "answerA": "The other was faster.",
        "answerB": "Yes",
        "answerC": "Because bananas.",
        "label": 1,
    },
]

PIQA = [
    {
        "goal": "How do I get candle wax out of a tablecloth?",
        "sol1": "Put paper over the wax and iron it, so that the paper takes up the wax.",
        "sol2": "Put paper over the wax and freeze it, so that the paper takes up the table.",
        "label": 0,
    },
    {
        "goal": "keep a cutting board from slipping",
        "sol1": "Lay a buttered knife under it.",
        "sol2": "Lay a damp towel under it.",
        "label": "1",
    },
    {
        # The mask token, in what is given and in what is masked.
        "goal": "To end a document<|endoftext|>for a language model, which token is written?",
        "sol1": "Behind the last word comes <|endoftext|> and nothing else.",
        "sol2": "Behind the last word come <|endoftext|><|endoftext|> and a picture of a horse.",
        "label": 0,
    },
    {"goal": "spoon", "sol1": "can stir soup ", "sol2": "can stir a house ", "label": 0},
    {
        "goal": "To find out whether an egg is still fresh without breaking it, when no date is printed on the box and "
        "nobody remembers when it was bought,",
        "sol1": "shine a torch at the fridge, and if the fridge hums in B flat, the egg has been there for 12 years.",
        "sol2": "lay it in a bowl of cold water: a fresh egg stays at the bottom, an old one rises to the surface.",
        "label": "1",
    },
]

QUESTIONS = {"hellaswag": HELLASWAG, "winogrande": WINOGRANDE, "siqa": SIQA, "piqa": PIQA}

TEXTS = [
    "The ferry to the island leaves at seven in the morning, and in winter it is the only one. Those who miss it have "
    "a long day before them: the harbour has a bench, a kiosk that opens at ten, and a view of the ferry getting "
    "smaller. Most people miss it once. On the next day they are there at half past six, with a thermos flask and a "
    "sheepish look.",
    "Water boils at a lower temperature on a mountain, because there is less air above it.",
    "A naïve rule: every document ends with a mark.<|endoftext|>The mark belongs to the document — not to the next "
    "one, which begins with a word of its own.\nA program that counts documents counts the marks.",
]

# What is read of a question. `opened`: where a tokenizer puts a token before a text, it puts one before prefix and options each.
Question = namedtuple("Question", "prefix options suffix gold opened", defaults=(False,))


def without_marks(text):
    """`preprocess` of the released evaluator."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(item, parity):
    begun = item.get("ctx_b", "")
    begun = begun.capitalize() if parity else begun[:1].upper() + begun[1:]
    prefix = without_marks(f"{item['activity_label']}: {item['ctx_a']} {begun}")
    endings = [without_marks(ending) for ending in item["endings"]]
    if not parity:
        prefix, endings = prefix.strip(), [" " + ending.strip() for ending in endings]
    return Question(prefix, endings, "", int(item["label"]), opened=parity)


def winogrande(item, parity):
    gap = item["sentence"].index("_")
    prefix, suffix = item["sentence"][:gap], item["sentence"][gap + 1 :]
    options = [item["option1"], item["option2"]]
    if parity:
        suffix = suffix.strip()
    elif prefix != prefix.rstrip():
        prefix, options = prefix.rstrip(), [" " + option for option in options]
    return Question(prefix, options, suffix, int(item["answer"]) - 1)


def siqa(item, parity):
    prefix = f"Question: {item['context']} {item['question']}\nAnswer:"
    answers = [item["answerA"], item["answerB"], item["answerC"]]
    gold = "ABC".index(item["correct"]) if "correct" in item else int(item["label"]) - 1
    if parity:
        return Question(prefix + " ", answers, "", gold)
    return Question(prefix, [" " + answer for answer in answers], "", gold)


def piqa(item, parity):
    prefix = f"Question: {item['goal']}\nAnswer:" + (" " if parity else "")
    return Question(prefix, [" " + item["sol1"], " " + item["sol2"]], "", int(item["label"]), opened=parity)


READERS = {"hellaswag": hellaswag, "winogrande": winogrande, "siqa": siqa, "piqa": piqa}
