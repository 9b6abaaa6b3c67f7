"""Conversations made of messages: cut at silences of hours, with one side's consecutive messages joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SILENCE = 6 * 3600.0  # seconds of silence after which a new conversation begins
MARKUP = 8  # tokens that a chat template adds to a turn, roughly
FIRST_PERSON = ("me", "eu", "yo", "ich", "moi", "io", "you", "você")  # how exports name their owner


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its line (or number) in the file, when it was sent (seconds; None: unknown), and by whom."""

    place: str
    sent: float | None
    who: str
    text: str


@dataclass(frozen=True)
class Chat:
    """A chat between people.

    Attributes:
        kind: description of the file: "a WhatsApp chat".
        title: title of the chat, or "".
        messages: messages in order.
        owner: the person who exported it, or "" if unknown.
        left_out: place, reason and beginning of what is no message: pictures, calls, notices.
    """

    kind: str
    title: str
    messages: tuple[Message, ...]
    owner: str = ""
    left_out: tuple[tuple[str, str, str], ...] = ()

    @property
    def people(self) -> list[str]:
        """Return the writers, those with the most messages first."""
        return [who for who, _ in Counter(message.who for message in self.messages).most_common()]


@dataclass(frozen=True)
class Conversation:
    """Turns of user and assistant, each with its text, and the positions of the first and the last message."""

    turns: tuple[tuple[str, str], ...]
    first: str
    last: str

    @property
    def is_answered(self) -> bool:
        """Return whether somebody asks and is answered."""
        return len({role for role, _ in self.turns}) > 1


def whose_answers(chat: Chat, wanted: str = "") -> str:
    """Return whose messages are trained: the requested person, else the owner, else whoever wrote most.

    Raises:
        ValueError: nobody of that name wrote.
    """
    people = chat.people
    if wanted:
        found = next((who for who in people if who.casefold() == wanted.casefold()), "")
        if not found:
            raise ValueError(f"nobody named {wanted!r} writes in it; there are {', '.join(people[:6])}")
        return found
    if chat.owner in people:
        return chat.owner
    if first_person := next((who for who in people if who.casefold() in FIRST_PERSON), ""):
        return first_person
    counts = Counter(message.who for message in chat.messages)
    return max(reversed(people), key=counts.__getitem__)  # among equals the last to join, since the first one asks


def conversations(chat: Chat, answers: str, count: Callable[[str], int], limit: int) -> Iterator[Conversation]:
    """Cut a chat where nobody wrote for hours and where a conversation would exceed a row.

    Args:
        chat: the chat.
        answers: the person who is the assistant; all others are the user, by name if there are several.
        count: the tokens of a text.
        limit: tokens of a conversation.
    """
    names = len(chat.people) > 2
    turns: list[list[Message]] = []
    tokens, before = 0, None
    for message in chat.messages:
        cost = count(message.text)
        silent = before is not None and message.sent is not None and before.sent is not None
        anew = silent and message.sent - before.sent > SILENCE  # type: ignore[operator,union-attr]
        same = bool(turns) and (turns[-1][0].who == answers) == (message.who == answers)
        full = bool(turns) and tokens + cost + MARKUP > limit and not same and message.who != answers
        if anew or full:
            yield _conversation(turns, answers, names)
            turns, tokens, same = [], 0, False
        if not same:
            turns.append([])
            tokens += MARKUP
        turns[-1].append(message)
        tokens += cost
        before = message
    if turns:
        yield _conversation(turns, answers, names)


def _conversation(turns: Sequence[Sequence[Message]], answers: str, names: bool) -> Conversation:
    said = []
    for turn in turns:
        asks = turn[0].who != answers
        lines = (f"{message.who}: {message.text}" if asks and names else message.text for message in turn)
        said.append(("user" if asks else "assistant", "\n".join(lines)))
    return Conversation(tuple(said), turns[0][0].place, turns[-1][-1].place)
