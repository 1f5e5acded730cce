"""Formats of conversations: messages, ShareGPT, Alpaca, and the lines that OpenAI's fine-tuning takes."""

from collections.abc import Mapping
from typing import Any

from ..records import RecordError
from ..strict_json import parse_json
from .format import Format, Message, list_of, object_of, of_conversation, ranking, refusal, text_of

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def _from_messages(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"messages": [{"role", "content"}, ...]}, or two such lists, "chosen" and "rejected", with the same beginning."""
    if kind != "ranking":
        return of_conversation(_messages_of(row, "messages", where), kind, where)
    chosen, rejected = (_messages_of(row, name, where) for name in ("chosen", "rejected"))
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    if not common:
        raise RecordError(
            f"{where} 'chosen' and 'rejected' must begin with the same prompt; their first messages differ."
        )
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def _messages_of(row: Mapping[str, Any], name: str, where: str) -> list[Message]:
    messages = []
    for index, message in enumerate(list_of(row, name, where)):
        message = dict(object_of(message, f"{name}[{index}]", where))
        text_of(message, "role", f"{where} {name}[{index}]:")
        messages.append(message)
    return messages


def _from_openai(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"messages", "tools"}, or {"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"}."""
    source = object_of(row.get("input"), "input", where) if kind == "ranking" else row
    record: dict[str, Any] = {}
    if source.get("tools") is not None:
        record["tools"] = list_of(source, "tools", where)
    elif source.get("functions") is not None:
        record["tools"] = [
            {"type": "function", "function": function} for function in list_of(source, "functions", where)
        ]
    if kind != "ranking":
        return record | of_conversation(_openai_messages(row, "messages", where), kind, where)
    names = {"chosen": "preferred_output", "rejected": "non_preferred_output"}
    answers = {name: _openai_messages(row, theirs, where) for name, theirs in names.items()}
    return record | {"prompt": _openai_messages(source, "messages", where)} | answers


def _openai_messages(row: Mapping[str, Any], name: str, where: str) -> list[Message]:
    messages = _messages_of(row, name, where)
    return [_openai_message(message, f"{where} {name}[{index}]:") for index, message in enumerate(messages)]


def _openai_message(message: Message, where: str) -> Message:
    """Takes the arguments of calls out of their JSON text, and a content out of its parts."""
    if message.pop("weight", 1) not in (1, None):
        raise RecordError(
            f"{where} 'weight' must be 1 or absent; we learn every answer. Remove the message or the weight."
        )
    if isinstance(message.get("content"), list):
        parts = [object_of(part, "content", where) for part in message["content"]]
        message["content"] = "".join(text_of(part, "text", where) for part in parts)
    if message["role"] == "function":
        message["role"] = "tool"
    if message.get("function_call") is not None:
        message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]
    if message.get("tool_calls") is not None:
        message["tool_calls"] = [_openai_call(call, where) for call in list_of(message, "tool_calls", where)]
    if message.get("content") is None and message.get("tool_calls"):
        message["content"] = ""
    return message


def _openai_call(call: Any, where: str) -> dict[str, Any]:
    function = object_of(object_of(call, "tool_calls", where).get("function"), "tool_calls.function", where)
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"), where)}}


def _arguments(value: Any, where: str) -> Any:
    arguments = parse_json(value, f"{where} 'arguments'") if isinstance(value, str) else value
    return object_of(arguments, "arguments", where)


def _from_sharegpt(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"conversations": [{"from", "value"}, ...], "system", "tools"}; rankings have "chosen" and "rejected" besides."""
    messages = []
    system = text_of(row, "system", where, may_be_empty=True)
    if system:
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(list_of(row, "conversations", where)):
        messages.append(_sharegpt_message(turn, f"{where} conversations[{index}]:"))
    record = {"tools": row["tools"]} if row.get("tools") else {}
    if kind != "ranking":
        return record | of_conversation(messages, kind, where)
    answers = {name: [_sharegpt_message(row.get(name), f"{where} {name}:")] for name in ("chosen", "rejected")}
    return record | {"prompt": messages} | answers


def _sharegpt_message(turn: Any, where: str) -> Message:
    speaker = text_of(object_of(turn, "turn", where), "from", where)
    if speaker not in SHAREGPT_ROLES:
        raise refusal(where, "from", f"one of {', '.join(SHAREGPT_ROLES)}", speaker)
    value = text_of(turn, "value", where, may_be_empty=speaker in ("system", "observation", "tool"))
    if speaker != "function_call":
        return {"role": SHAREGPT_ROLES[speaker], "content": value}
    calls = parse_json(value, f"{where} 'value'")
    tool_calls = []
    for call in calls if isinstance(calls, list) else [calls]:
        name = text_of(object_of(call, "value", where), "name", where)
        function = {"name": name, "arguments": _arguments(call.get("arguments"), where)}
        tool_calls.append({"type": "function", "function": function})
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def _from_alpaca(row: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """{"instruction", "input", "output", "system", "history": [[question, answer], ...]}; rankings have "chosen" and
    "rejected" instead of "output". The input stands in the line after the instruction."""
    messages = []
    system = text_of(row, "system", where, may_be_empty=True)
    if system:
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(row.get("history") or []):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise refusal(where, f"history[{index}]", "a question and its answer", turn)
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    instruction, given = text_of(row, "instruction", where), text_of(row, "input", where, may_be_empty=True)
    messages.append({"role": "user", "content": f"{instruction}\n{given}" if given.strip() else instruction})
    if kind == "ranking":
        return ranking(messages, [text_of(row, name, where) for name in ("chosen", "rejected")], [1.0, 0.0])
    if kind == "prompt":
        return {"prompt": messages}
    # The earlier answers are part of the prompt: what they are worth nobody has said.
    return {"prompt": messages, "completion": [{"role": "assistant", "content": text_of(row, "output", where)}]}


MESSAGES = Format(("messages", "chosen", "rejected", "prompt"), ("demonstration", "ranking", "prompt"), _from_messages)
OPENAI = Format(
    ("messages", "tools", "functions", "input", "preferred_output", "non_preferred_output"),
    ("demonstration", "ranking", "prompt"),
    _from_openai,
)
SHAREGPT = Format(
    ("conversations", "system", "tools", "chosen", "rejected"), ("demonstration", "ranking", "prompt"), _from_sharegpt
)
ALPACA = Format(
    ("instruction", "input", "output", "system", "history", "chosen", "rejected"),
    ("demonstration", "ranking", "prompt"),
    _from_alpaca,
)
