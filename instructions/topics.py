"""The topics and the frames of requests, read from a JSON file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from instructions.constraint import Topic
from rlhf_core.common.errors import UserError

LEAST_RELATED = 3  # related words of a topic, from which constraints draw up to two
SLOT = "{}"  # where a frame names the topic


@dataclass(frozen=True)
class Topics:
    """What requests are made of: a request is a frame with the name of a topic in it.

    system: the system message of every prompt; empty for none.
    """

    system: str
    frames: Sequence[str]
    topics: Sequence[Topic]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            UserError: it is missing, is not JSON, or lacks frames or topics; the message names the entry.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}. Set prepare.path to a file of topics."
            ) from error
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}). Correct it.") from error
        if not isinstance(raw, dict) or not raw.get("frames") or not isinstance(raw.get("topics"), dict):
            raise UserError(f"{path} needs the keys frames (a list) and topics (an object). Add them.")
        for frame in raw["frames"]:
            if not isinstance(frame, str) or frame.count(SLOT) != 1:
                raise UserError(f"{path}: the frame {frame!r} must contain {SLOT} once, for the topic. Correct it.")
        topics = [_topic(path, name, related) for name, related in raw["topics"].items()]
        return cls(str(raw.get("system", "")), raw["frames"], topics)


def _topic(path: Path, name: str, related: Any) -> Topic:
    is_list = isinstance(related, list) and all(isinstance(word, str) and word for word in related)
    if not is_list or len(set(related)) < LEAST_RELATED:
        raise UserError(f"{path}: topic {name!r} needs a list of at least {LEAST_RELATED} related words. Add them.")
    return Topic(name, tuple(related))
