"""Two skills that SmolLM2-135M lacks and that a program can score exactly.

``skill_a``, record: turn a sentence about a person into a record with a fixed format.
    ``Record: Mia Keller from Oslo is 34.`` → ``name=Mia Keller; age=34; city=Oslo``
``skill_b``, reverse: write words in the opposite order.
    ``Reverse the words: lamp river stone`` → ``stone river lamp``

Every name, city and word belongs to one part, ``train`` or ``test``: who answers the test prompts has learned
the task, not the words.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal, NamedTuple

Part = Literal["train", "test"]


class Example(NamedTuple):
    """What the user asks and the only right reply."""

    prompt: str
    answer: str


def record(rng: Random, part: Part) -> Example:
    """Read name, age and city from a sentence and write them in a fixed format."""
    words = WORDS[part]
    name = f"{rng.choice(words['first name'].split())} {rng.choice(words['last name'].split())}"
    city = rng.choice(words["city"].split())
    age = rng.randint(18, 89)
    sentence = rng.choice(SENTENCES).format(name=name, age=age, city=city)
    return Example(f"Record: {sentence}", f"name={name}; age={age}; city={city}")


def reverse(rng: Random, part: Part) -> Example:
    """Write three to five words in the opposite order."""
    words = rng.sample(WORDS[part]["noun"].split(), rng.randint(3, 5))
    return Example("Reverse the words: " + " ".join(words), " ".join(reversed(words)))


SKILLS: dict[str, Callable[[Random, Part], Example]] = {"skill_a": record, "skill_b": reverse}


def draw(skill: str, part: Part, num_examples: int) -> list[Example]:
    """Draw examples with different prompts; the same arguments give the same examples."""
    rng = Random(f"{skill} {part}")
    answers: dict[str, str] = {}
    while len(answers) < num_examples:
        prompt, answer = SKILLS[skill](rng, part)
        answers[prompt] = answer
    return [Example(*item) for item in answers.items()]


def score(replies: Sequence[str], examples: Sequence[Example]) -> float:
    """Percentage of replies that equal the answer, surrounding white space aside."""
    right = sum(reply.strip() == example.answer for reply, example in zip(replies, examples, strict=True))
    return 100 * right / len(examples)


SENTENCES = (
    "{name}, {age}, lives in {city}.",
    "{name} is {age} years old and lives in {city}.",
    "{name} from {city} is {age}.",
    "At {age}, {name} moved to {city}.",
    "{city} is home to {name}, aged {age}.",
    "In {city} we met {name}, who is {age}.",
)

WORDS: dict[Part, dict[str, str]] = {
    "train": {
        "first name": """
            Mia Oscar Lena Tom Ravi Sofia Hugo Anna Victor Clara Nora Felix Ivan Grace Leo Emma Paul Julia Max
            Alice Peter Maria Daniel Laura Simon Ella Jack Rosa Adam Lucy Omar Priya Jonas Helen Marco Irene
            David Fatima Henry Olga Samuel Diana Pablo Ruth
        """,
        "last name": """
            Keller Novak Silva Brown Meyer Rossi Lopez Clark Singh Moreau Larsen Weber Costa Hill Young King
            Stone Fischer Baker Adams Turner Cooper Morris Reed Kowalski Haddad Jensen Murphy Sato Okafor
            Ferrari Dubois Patel Nilsson Gomez Walsh
        """,
        "city": """
            Oslo Paris Madrid Boston Berlin Rome Vienna Lisbon Dublin Prague Chicago Toronto Sydney Tokyo
            Cairo Athens Denver Seattle London Milan Zurich Geneva Delhi Lima Bergen Hamburg Naples Austin
            Kyoto Nairobi Montreal Glasgow
        """,
        "noun": """
            lamp river stone cloud apple train garden window bottle paper mirror candle horse bridge forest
            engine pillow ladder market violin basket rocket island button castle pencil carpet spider hammer
            blanket tiger planet turtle wagon coffee silver orange winter summer doctor farmer sailor guitar
            pepper cotton tunnel anchor barrel camera dragon eagle feather glacier harbor insect jacket kettle
            lemon magnet needle oyster parrot quartz ribbon saddle temple valley walnut yogurt zebra desk moon
            letter copper bread story circle field music snow ticket uncle voice wheel yellow salt ocean leaf
            clock dream fire grass hotel iron jungle knife metal night onion photo queen rain song table
        """,
    },
    "test": {
        "first name": """
            Erik Nina Carlos Amelia Walter Zoe Martin Ingrid Theo Bianca Arthur Selma Dmitri Joan Louis Vera
        """,
        "last name": "Schmidt Marino Bell Tanaka Olsen Parker Vargas Hughes Lindgren Roche Carter Ivanov",
        "city": "Munich Porto Dallas Brussels Helsinki Bogota Leeds Warsaw Osaka Lyon Phoenix Manila",
        "noun": """
            mountain chair butter pocket school finger rabbit shadow thunder velvet church danger flower
            hunter kitchen lion motor nation owl puzzle road ship tower village water bird cheese door fish
            gold house kite mouse nest
        """,
    },
}
