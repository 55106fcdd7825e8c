"""Make up everyday English sentences with given words."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

# Kinds of templates, by the beginnings of emojibase's subgroups.
KINDS = {
    "country-flag": "flag",
    "subdivision-flag": "flag",
    "food-": "food",
    "drink": "drink",
    "animal-": "animal",
    "plant-": "plant",
    "face-costume": "person",
    "face-": "face",
    "cat-face": "face",
    "monkey-face": "face",
    "heart": "feeling",
    "emotion": "feeling",
    "hand": "gesture",
    "body-parts": "body",
    "person-activity": "activity",
    "person-sport": "activity",
    "person-resting": "activity",
    "person-gesture": "activity",
    "person": "person",
    "family": "person",
    "place-": "place",
    "transport-ground": "vehicle",
    "transport-water": "vehicle",
    "transport-air": "vehicle",
    "sky-weather": "weather",
    "time": "time",
    "event": "event",
    "award-medal": "event",
    "sport": "game",
    "game": "game",
    "clothing": "clothing",
    "music": "music",
    "sound": "music",
    "dishware": "object",
    "hotel": "object",
    "arts-crafts": "object",
    "phone": "object",
    "computer": "object",
    "light-video": "object",
    "book-paper": "object",
    "money": "object",
    "mail": "object",
    "writing": "object",
    "office": "object",
    "lock": "object",
    "tool": "object",
    "science": "object",
    "medical": "object",
    "household": "object",
    "other-object": "object",
}  # all others: symbols


def _list(text: str) -> list[str]:
    """Return the parts between the bars."""
    return [" ".join(part.split()) for part in text.split("|")]


# In templates: {n} the noun, {a} with its article, {p} its plural; {adj}, {verb}, {ing} words from
# the keywords; {who}, {color}, {size}, {nice}, {where} random words.
ANY = _list("""
    {a} | the {n} | {nice} {n} | a picture of {a} | a photo of {a} | a drawing of {a} |
    an image of {a} | an icon of {a} | {n} emoji | the emoji for {n} | show me {a} |
    {a} on a white background | a cartoon of {a} | do you have a picture of {a}? | this is {a} |
    I am looking for {a} | {who} drew {a}
""")
THING = _list("""
    where is the {n}? | {who} saw {a} {where} | {who} found {a} {where} | there is {a} {where} |
    I like this {n} | {who} talked about the {n} | look at the {n} | have you seen my {n}? |
    {who} took a photo of the {n} | two {p} | many {p} {where} | a lot of {p} | I love {p} |
    a {size} {n}
""")
PERSON_FEELINGS = _list("""
    I am so {adj} | I feel {adj} today | {who} looked {adj} | {who} felt very {adj} |
    why are you so {adj}? | this makes me {adj} | {who} was {ing} | I cannot stop {ing} |
    I want to {verb} | let us {verb} | {who} started to {verb}
""")
BY_KIND = {
    "flag": _list("""
        the flag of {n} | the national flag of {n} | {n} | {n} flag | a flag from {n} |
        I live in {n} | {who} came from {n} | we are going on holiday to {n} |
        {who} moved to {n} last year | the football team of {n} | people in {n} | a trip to {n} |
        I was born in {n} | the colors of {n} | greetings from {n} | the flag that flies in {n} |
        {who} waved the flag of {n} | the capital of {n} | welcome to {n} |
        fans of {n} with their flags | the anthem of {n} | the government of {n} | made in {n} |
        how do I get to {n}? | the language that people speak in {n} | a visa for {n} |
        an athlete from {n} on the podium | the map of {n} | {n} won the match |
        the banner of {n} in the wind
    """),
    "food": THING
    + _list("""
        {who} ate {a} | I want to eat {a} | I am hungry for {a} | {who} cooked {a} for dinner |
        we had {a} for lunch | {a} for breakfast | {a} on a plate | a plate of {p} |
        a bowl of {p} | {who} bought {p} at the market | a fresh {n} | a tasty {n} |
        a delicious {n} | the recipe for {n} | how to make {a} |
        {who} ordered {a} in a restaurant | can I have some {n}, please? | {p} taste good |
        a bite of {n} | we are out of {p} | a snack: {n} | this {n} smells good |
        {who} cut the {n} in pieces | my favorite food is {n}
    """),
    "drink": THING
    + _list("""
        {who} drank {a} | I want to drink {a} | I am thirsty for {a} | a glass of {n} |
        a cup of {n} | a bottle of {n} | {a} on the table | {who} poured {a} |
        {who} ordered {a} in a bar | can I have {a}, please? | {a} with friends in the evening |
        a cold {n} | a hot {n} | a sip of {n} | my favorite drink is {n} | let us have {a}
    """),
    "animal": THING
    + _list("""
        the {n} is sleeping | the {n} is eating | {a} in the zoo | {a} in the wild |
        {a} in the forest | a baby {n} | a cute {n} | a wild {n} | a hungry {n} |
        the {n} is looking at me | {who} fed the {n} | {who} was afraid of the {n} |
        a group of {p} | {p} are my favorite animals | the {n} ran away |
        I heard {a} last night | my pet is {a} | a {color} {n} | the sound of {a} |
        {p} live here | the animal called {n} | {who} chased {a}
    """),
    "plant": THING
    + _list("""
        {a} in the garden | {a} in a vase | a {color} {n} | {who} planted {a} |
        {who} watered the {n} | the {n} is growing | {p} in spring | a field of {p} |
        the smell of {p} | {a} in the forest | {who} picked {a} | a beautiful {n} |
        the leaves of the {n} | a gift of {p}
    """),
    "face": PERSON_FEELINGS
    + PERSON_FEELINGS
    + _list("""
        {who} made {a} | someone who is {adj} | a face that looks {adj} | {who} sent me {a} |
        that moment when you feel {adj} | a very {adj} person | my face when I am {adj} |
        I am {ing} right now | {who} had {a}
    """),
    "feeling": PERSON_FEELINGS
    + _list("""
        {who} sent me {a} | {a} for you | with {a} | {a} on a card | {who} drew {a} on the wall |
        a symbol of {n} | so much {n}
    """),
    "gesture": PERSON_FEELINGS
    + _list("""
        {who} made the sign of {a} | the gesture of {a} | {who} showed {a} | {a} in the air |
        a hand gesture: {n} | my hands: {n}
    """),
    "body": _list("""
        my {n} hurts | the {n} of a person | {who} hurt the {n} | the doctor looked at my {n} |
        a human {n} | a part of the body: {n} | two {p} | {who} touched my {n} | a big {n} |
        a strong {n} | a model of {a} | the anatomy of {a} | {who} moved the {n} |
        to {verb} with the {n}
    """),
    "person": _list("""
        {who} met {a} | {who} saw {a} {where} | {a} is standing {where} | {a} is waiting |
        the {n} smiled at me | I want to be {a} | {who} dressed up as {a} | {who} talked to {a} |
        a story about {a} | {a} at work | {a} walked into the room | the {n} next door |
        two {p} | a young {n} | a happy {n} | a tired {n} | a portrait of {a} | we need {a} |
        {who} works as {a} | {a} is coming | the {n} said hello | a friendly {n} | {a} {where}
    """),
    "activity": _list("""
        {a} {where} | {a} in the morning | {a} with friends | I saw {a} | {who} likes to {verb} |
        {who} went {ing} | {who} was {ing} | I love {ing} | we go {ing} every week |
        I want to {verb} | let us {verb} | {who} started to {verb} | a photo of someone {ing} |
        {ing} is fun | {ing} is good for your health | {who} cannot {verb} | {a} in summer |
        {a} on Sunday | a {size} {n} | look at the {n} | do you like {ing}? | {a} in the city |
        a video of {a} | {who} took a photo of {a}
    """),
    "place": _list("""
        {who} went to the {n} | we are at the {n} | a trip to the {n} |
        how do I get to the {n}? | the view of the {n} | {a} in the city |
        {a} in the countryside | a {size} {n} | a beautiful {n} | an old {n} |
        {who} lives near the {n} | we visited {a} on holiday | a postcard of the {n} |
        people in front of the {n} | the {n} at night | the {n} in summer |
        {who} was waiting at the {n} | inside the {n} | is the {n} open today? | two {p} |
        {a} in a foreign country | let us meet at the {n} | {who} works at the {n} |
        a walk around the {n} | the road to the {n} | a famous {n}
    """),
    "vehicle": THING
    + _list("""
        {who} waited for the {n} | {who} traveled by {n} | {a} on the way to work |
        {a} in the street | the {n} is late | the {n} is leaving | a fast {n} | a {color} {n} |
        an old {n} | a new {n} | a ride on {a} | {who} missed the {n} |
        the {n} stopped in front of the house | a ticket for the {n} | a toy {n} |
        the engine of the {n} | {who} repaired the {n} | the {n} is full of people |
        we took the {n} to the city | traveling with {a}
    """),
    "weather": _list("""
        the {n} in the sky | {a} tonight | {a} in the morning | {a} over the sea |
        {a} over the mountains | we looked at the {n} | the weather: {n} | it is {adj} today |
        what a {adj} day | the {n} is beautiful | {who} photographed the {n} | tomorrow: {n} |
        a day with {a} | in winter: {n} | in summer: {n} | {who} walked in the {n} |
        after the {n} | the forecast says {n} | it started to {verb} | it is {ing} |
        a {size} {n} | {a} outside | {a} above the city | {p} in the night sky | watching the {n}
    """),
    "time": _list("""
        it is {n} | the clock shows {n} | a clock at {n} | let us meet at {n} |
        the train leaves at {n} | {n} in the morning | {n} in the afternoon | I got up at {n} |
        the meeting is at {n} | {who} called at {n} | what time is it? {n} |
        {who} looked at the {n} | a {size} {n}
    """),
    "event": THING
    + _list("""
        we celebrate with {a} | a party with {p} | {who} won {a} |
        {who} got {a} for the birthday | {a} at the festival | a holiday with {p} |
        {p} on New Year's Eve | the children love the {n} | {a} at the ceremony |
        happy holidays: {n} | {who} put up the {n} | {a} as a present
    """),
    "game": THING
    + _list("""
        let us play {n} | {who} played {n} | a game of {n} | {who} won at {n} |
        {who} practices {n} every week | the {n} team | {a} at the stadium |
        the {n} championship | I lost my {n} | the rules of {n} | {n} with friends |
        a match of {n} on television | a {n} player | the children play with the {n} |
        {who} bought a new {n}
    """),
    "clothing": THING
    + _list("""
        {who} wore {a} | {who} bought {a} | a {color} {n} | a {color} {n} | a new {n} |
        an old {n} | a pair of {p} | {who} washed the {n} | this {n} is too small for me |
        {a} in a shop window | {a} for the party | {who} put on the {n} |
        {who} forgot the {n} at home | an elegant {n} | {p} are in fashion |
        {a} made of leather | what does the {n} cost?
    """),
    "music": THING
    + _list("""
        {who} played the {n} | the sound of {a} | {who} listened to the {n} |
        {a} in an orchestra | a concert with {a} | {who} is learning the {n} | a {n} lesson |
        the {n} is too loud | turn down the {n} | music from the {n} | {a} on the stage |
        a band with {a} | we heard {a} | a new {n} | an old {n}
    """),
    "object": THING
    + _list("""
        {who} used {a} | {who} bought {a} | {who} needs {a} | {who} lost the {n} |
        {who} broke the {n} | a {color} {n} | a new {n} | an old {n} | {a} on the table |
        {a} in a box | {a} on the desk | give me the {n}, please | can I borrow your {n}? |
        {who} put the {n} on the shelf | {who} opened the {n} | what is {a} for? |
        how to use {a} | the {n} does not work | {who} repaired the {n} | {p} for sale |
        we need {a} at the office | we need {a} at home
    """),
    "symbol": _list("""
        the {n} sign | a sign that says {n} | the symbol for {n} | a {n} symbol | press the {n} |
        the {n} on the screen | {a} on a button | a sign with {a} | what does {a} mean? |
        {who} saw the sign: {n} | the shape of {a} | {a} printed on paper | draw {a} |
        {who} painted {a} on the wall | a big {n} | a small {n} | the icon means {n} |
        a logo with {a} | click on the {n} | two {p} | a row of {p} |
        {n} in the middle of the page | a road sign: {n} | a warning: {n} | please note: {n}
    """),
}
WHO = _list("""
    I | we | she | he | they | somebody | my friend | my sister | my brother | my mother |
    my father | the boy | the girl | a man | a woman | the children | our neighbor |
    the teacher | the old man | the young woman | my grandmother | everyone | a child
""")
WHERE = _list("""
    in the street | in the garden | at home | in the park | on the table | in the kitchen |
    near the river | at the beach | in the city | outside | in front of the house | at school |
    in the room | behind the house | next to me | in the office | on the floor
""")
COLORS = _list("""
    red | orange | yellow | green | blue | purple | brown | black | white | gray | pink | golden
""")
SIZES = _list("""
    small | little | tiny | big | large | huge
""")
NICE = _list("""
    a nice | one | my | your | our | another | a beautiful | a funny | a simple | her
""")
# Nouns without an article.
MASS = set(
    _list("""
    anger | baby-milk | bacon | badminton | baggage | baseball | basketball | beer | blood |
    bowling | bread | broccoli | butter | camping | champagne | cheese | chess | chocolate |
    clothing | coffee | construction | cooking | coral | corn | cricket | curry | custard | dna |
    fire | fog | fondue | food | football | furniture | garlic | ginger | golf | hair |
    happiness | hockey | honey | ice | infinity | information | jewelry | joy | juice |
    lacrosse | lightning | love | luck | luggage | mail | makeup | mate | meat | milk | money |
    music | news | paper | pasta | peace | ping-pong | pong | popcorn | rain | rice | sadness |
    sake | salad | salt | seafood | shaking | skin | sleep | smoke | snow | soap | soccer |
    softball | soup | spaghetti | sugar | sushi | tea | tennis | thread | traffic | volleyball |
    water | weather | wind | wine | wood | wool | yarn
""")
)
PLURALS = dict(
    pair.split()
    for pair in _list(
        "man men | woman women | child children | person people | mouse mice | foot feet |"
        "tooth teeth | goose geese | wolf wolves | fish fish | sheep sheep | leaf leaves |"
        "knife knives"
    )
)
PREPOSITIONS = re.compile(
    r" (with|of|on|in|to|not|without|holding|behind|under|at|from|for|and|or) "
)


@dataclass(frozen=True)
class Words:
    """The words for an emoji that fit into templates. nouns: at least one, the best ones first."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    participles: tuple[str, ...] = ()


def plain_name(label: str) -> str:
    """Return CLDR's short name as one says it: "flag: Japan" is "Japan"."""
    label = re.sub(r"^flag: ", "", label)
    label = re.sub(r"^keycap: (.*)", r"number \1", label)
    label = re.sub(r"[“”()]", "", label.replace("’", "'").replace("&", "and"))
    if re.match("(kiss|couple with heart|family): ", label):
        start, *people = re.split(": |, ", label)
        return f"{start} of " + " and ".join(filter(None, (", ".join(people[:-1]), people[-1])))
    label = re.sub(r"^(person|man|woman): (.*)$", r"\1 with \2", label)
    label = label.replace("with bald", "who is bald").replace("with a bald", "with bald")
    return re.sub(r"[:,] ", " ", label)


def kind_of(subgroup: str) -> str:
    """Return the key of BY_KIND for emojibase's name of a subgroup."""
    return next((kind for start, kind in KINDS.items() if subgroup.startswith(start)), "symbol")


def everyday_sentences(words: Words, kind: str, count: int, rng: random.Random) -> list[str]:
    """Fill words into templates of `kind` and general ones; return up to `count` sentences."""
    special = [text for text in BY_KIND[kind] if _fits(text, words)]
    general = [] if kind in ("flag", "time") else [text for text in ANY if _fits(text, words)]
    templates = [*rng.sample(special, len(special)), *rng.sample(general, len(general) // 2)]
    templates += rng.choices(special, k=count)  # once more, with other words
    sentences = dict.fromkeys(_fill(template, words, rng) for template in templates)
    return list(sentences)[:count]


def _fits(template: str, words: Words) -> bool:
    """Return whether there are words for all slots of the template."""
    slots = {"{adj}": words.adjectives, "{verb}": words.verbs, "{ing}": words.participles}
    return all(given for slot, given in slots.items() if slot in template)


def _fill(template: str, words: Words, rng: random.Random) -> str:
    # The best name in half of the sentences.
    noun = words.nouns[0] if rng.random() < 0.5 else rng.choice(words.nouns)
    if "{p}" in template and plural(noun) == noun and not _is_plural(noun):
        template = re.sub("^two {p}|many {p}|a lot of {p}|{p}", "{n}", template)
    if not _is_countable(noun):
        # "a new {n}" becomes "new coffee".
        template = re.sub(r"\b(a|an|another|one) ((\S+ )?{(n|p)})", r"\2", template)
    text = template.format(
        n=noun,
        a=with_article(noun),
        p=plural(noun),
        who=rng.choice(WHO),
        where=rng.choice(WHERE),
        color=rng.choice(COLORS),
        size=rng.choice(SIZES),
        nice=rng.choice(NICE if _is_countable(noun) else ["my", "your", "our", "some", "nice"]),
        adj=rng.choice(words.adjectives or [""]),
        verb=rng.choice(words.verbs or [""]),
        ing=rng.choice(words.participles or [""]),
    )
    text = re.sub(r"\b(a|an) (\S+)", lambda match: _article(match[2]) + " " + match[2], text)
    return _agree(text)


def _agree(text: str) -> str:
    """Correct the verb after I, we, they and the children; templates have that of "she"."""
    match = re.match(r"(I|we|they|the children) (was|is|(?:like|need|work|live|practice)s)\b", text)
    if match is None:
        return text
    subject, verb = match.groups()
    irregular = {"was": "was", "is": "am"} if subject == "I" else {"was": "were", "is": "are"}
    return f"{subject} {irregular.get(verb, verb[:-1])}{text[match.end() :]}"


def with_article(noun: str) -> str:
    """Return "a pizza" or "an apple", but "grapes", "rice", "Tokyo tower"."""
    return f"{_article(noun)} {noun}" if _is_countable(noun) else noun


def _article(word: str) -> str:
    silent_or_vowel = re.match(r"(?!uni|eu|one\b|one-|use|uk)[aeiou]|hour|x-ray|8", word, re.I)
    return "an" if silent_or_vowel else "a"


def _head(noun: str) -> str:
    return PREPOSITIONS.split(noun)[0].split()[-1]


def _is_plural(noun: str) -> bool:
    head = _head(noun)
    plural_head = head.endswith("s") and not head.endswith(("ss", "us", "is", "as"))
    return plural_head or head in ("people", "men", "women", "children", "teeth", "feet")


def _is_countable(noun: str) -> bool:
    """Return whether the noun is a singular that takes an article."""
    return not (_is_plural(noun) or _head(noun).lower() in MASS or noun[0].isupper())


def plural(noun: str) -> str:
    """Return the plural of a countable noun, and others as they are."""
    if not _is_countable(noun) or PREPOSITIONS.search(noun) or noun.endswith(("ing", "right")):
        return noun
    start, last = noun[: -len(noun.split()[-1])], noun.split()[-1]
    if last.endswith("woman") or last == "fireman":
        return noun[:-2] + "en"
    if last in PLURALS:
        return start + PLURALS[last]
    if re.search("[^aeiou]y$", last):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search("(s|x|z|ch|sh)$", last) else "s")
