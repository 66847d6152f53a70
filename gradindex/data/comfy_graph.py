"""The prompt in a graph of ComfyUI, which its pictures hold as JSON.

A graph is {node: {"class_type": …, "inputs": {name: value}}}, where a value that comes from another
node is [node, number of its output]. Graphs come from strangers: whatever they hold, the work is
bounded by their number of nodes.
"""

from collections import deque
from typing import Any

MOST_STEPS = 100  # from one node to the next, on the way to a text

# Inputs that hold a text, or lead to one: of two encoders' the one that reads the longer text.
TEXTS = (
    *("t5xxl", "mt5xl", "text_g", "text", "clip_g", "prompt", "user_prompt", "text_positive"),
    *("positive_prompt", "populated_text", "text_l", "clip_l", "string", "value"),
)
CONDITIONINGS = ("positive", "conditioning", "conditioning_1", "conditioning_to")
JOINED = ("string_a", "string_b")  # of StringConcatenate

# Inputs that lead to something else than a text, or to what the picture is not to be like.
OTHERS = {
    *("clip", "model", "vae", "image", "images", "pixels", "samples", "latent", "latent_image"),
    *("negative", "mask", "control_net", "clip_vision", "clip_vision_output", "style_model"),
    *("noise", "sampler", "sigmas", "conditioning_2", "conditioning_from", "text_negative"),
}


def graph_prompt(graph: Any) -> str | None:
    """Return the text that the sampler nearest to the picture was conditioned on, or None.

    >>> encode = {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog", "clip": ["4", 1]}}
    >>> sampler = {"class_type": "KSampler", "inputs": {"positive": ["6", 0]}}
    >>> decode = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}}
    >>> graph_prompt({"3": sampler, "6": encode, "8": decode})
    'a dog'
    """
    if not isinstance(graph, dict):
        return None
    return _Graph(graph).prompt()


class _Graph:
    """The nodes of a graph, and which of them were asked for a text already."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self._inputs: dict[str, dict[str, Any]] = {}
        self._kinds: dict[str, str] = {}
        for name, node in graph.items():
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
                self._inputs[name] = node["inputs"]
                self._kinds[name] = str(node.get("class_type", ""))
        self._asked: set[tuple[str, bool]] = set()

    def prompt(self) -> str | None:
        """Walk from the pictures back to the nearest node that is conditioned, and to its text."""
        waiting = deque(self._last_nodes())
        seen = set(waiting)
        while waiting:
            node = waiting.popleft()
            inputs = self._inputs[node]
            names = ["positive"]
            if "guider" in self._kinds[node].casefold():
                names.append("conditioning")
            for name in names:
                text = self._value(inputs.get(name), 0)
                if text is not None:
                    return text
            for value in inputs.values():
                link = self._link(value)
                if link is not None and link[0] not in seen:
                    seen.add(link[0])
                    waiting.append(link[0])
        return None

    def _last_nodes(self) -> list[str]:
        """The nodes that no other takes anything from; first those that save a picture."""
        links = (self._link(value) for inputs in self._inputs.values() for value in inputs.values())
        taken_from = {link[0] for link in links if link is not None}
        last = [node for node in self._inputs if node not in taken_from]
        return sorted(last, key=lambda node: "save" not in self._kinds[node].casefold())

    def _link(self, value: Any) -> tuple[str, int] | None:
        """The node and output that a value comes from; None where it is no link."""
        if not isinstance(value, list) or len(value) != 2:
            return None
        node, output = value
        if not isinstance(node, str | int) or not isinstance(output, int):
            return None
        return (str(node), output) if str(node) in self._inputs else None

    def _value(self, value: Any, steps: int) -> str | None:
        """The text that the value of an input is, or comes from; None where there is none."""
        if isinstance(value, str):
            return value.strip()
        link = self._link(value)
        if link is None or steps > MOST_STEPS:
            return None
        node, output = link
        inputs = self._inputs[node]
        both = self._link(inputs.get("positive")) and self._link(inputs.get("negative"))
        is_negative = bool(both) and output == 1  # as ControlNetApplyAdvanced gives them
        if (node, is_negative) in self._asked:
            return None
        self._asked.add((node, is_negative))
        return self._text(inputs, steps + 1, is_negative=is_negative)

    def _text(self, inputs: dict[str, Any], steps: int, *, is_negative: bool) -> str | None:
        """The text that a node is given; of several that is not empty the first."""
        if all(name in inputs for name in JOINED):
            parts = [self._value(inputs[name], steps) for name in JOINED]
            delimiter = inputs.get("delimiter")
            joint = delimiter if isinstance(delimiter, str) else ""
            return joint.join(part for part in parts if part)
        names = ("negative",) if is_negative else (*TEXTS, *CONDITIONINGS)
        text = None
        for name in names:
            found = self._value(inputs.get(name), steps)
            if found:
                return found
            text = found if text is None else text
        if is_negative or text is not None:
            return text
        for name, value in inputs.items():
            if name not in OTHERS and self._link(value) is not None:
                found = self._value(value, steps)
                if found is not None:
                    return found
        return None
