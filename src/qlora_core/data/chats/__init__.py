"""Conversations from exported chats: who wrote what, and whose messages are the answers. Knows nothing of models."""

from .conversations import Chat, Conversation, Message, conversations, whose_answers
from .dialogue import read_dialogue
from .signal import read_signal, read_signal_export
from .telegram import read_telegram
from .whatsapp import read_log

__all__ = [
    "Chat",
    "Conversation",
    "Message",
    "conversations",
    "read_dialogue",
    "read_log",
    "read_signal",
    "read_signal_export",
    "read_telegram",
    "whose_answers",
]
