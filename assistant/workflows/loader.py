"""The workflow file: YAML 1.2, strict, with file, line and column in every error."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from assistant.errors import AssistantError

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

SHIPPED = Path(__file__).with_name("email_management.yaml")
_SIZE = 256 << 10
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class WorkflowFileError(AssistantError):
    """The workflow file is wrong; the message begins with file:line:column."""

    def __init__(self, where: str, sentence: str, fix: str = "") -> None:
        super().__init__("workflow_file", f"{where}: {sentence}", fix)


class StepSpec(msgspec.Struct, frozen=True):
    """One model call of a workflow."""

    name: str
    model: str
    prompt: str


class Workflow(msgspec.Struct, frozen=True):
    """A named list of steps."""

    name: str
    steps: tuple[StepSpec, ...]

    @property
    def digest(self) -> str:
        """Changes when a run begun before can no longer be resumed."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def load(path: Path) -> dict[str, Workflow]:
    """Read and check the whole file, or nothing of it.

    `workflows: {NAME: {steps: [{STEP: {model, prompt}}, ...]}}`. Raises WorkflowFileError.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        with path.open("rb") as file:
            data = file.read(_SIZE + 1)
    except OSError as error:
        raise WorkflowFileError(str(path), f"cannot be read: {error.strerror}") from error
    if len(data) > _SIZE:
        raise WorkflowFileError(str(path), f"is over {_SIZE} bytes")
    try:
        root = YAML(typ="safe", pure=True).compose(data.decode("utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise WorkflowFileError(where, f"not YAML: {error.problem or error.context}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise WorkflowFileError(str(path), "not YAML in UTF-8") from error
    return _Reader(str(path)).workflows(root)


def load_apart(path: Path) -> dict[str, Workflow]:
    """`load` in a short-lived child, so that the YAML library never enters this process's memory.

    Call it before any thread or event loop exists. Where the sandbox refuses to fork it is loaded
    here. Raises WorkflowFileError.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return load(path)
    if child == 0:
        _report(path, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    try:
        answer = msgspec.json.decode(result, type=_Loaded)
    except msgspec.DecodeError as error:
        raise WorkflowFileError(str(path), "the process that reads it died") from error
    if answer.problem:
        raise WorkflowFileError(*answer.problem)
    return {workflow.name: workflow for workflow in answer.workflows}


class _Loaded(msgspec.Struct):
    workflows: list[Workflow] = []
    problem: tuple[str, str] | None = None


def _report(path: Path, writing: int) -> None:
    """In the child: load, write the result, and leave without running the parent's clean-up."""
    try:
        try:
            loaded = _Loaded(workflows=list(load(path).values()))
        except WorkflowFileError as error:
            where, _, sentence = error.message.partition(": ")
            loaded = _Loaded(problem=(where, sentence))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(msgspec.json.encode(loaded))
    finally:
        os._exit(0)


def _is(node: Node, kind: str) -> bool:
    return str(node.tag) == f"tag:yaml.org,2002:{kind}"


class _Reader:
    """Walks the YAML nodes, which know their positions, instead of plain data, which does not."""

    def __init__(self, path: str) -> None:
        self._path = path

    def workflows(self, root: Node | None) -> dict[str, Workflow]:
        if root is None:
            raise WorkflowFileError(self._path, "is empty", "it must begin with `workflows:`")
        top = self._mapping(root, "the file", ("workflows",))
        named = self._mapping(top["workflows"], "`workflows`")
        if not named:
            raise self._error(top["workflows"], "`workflows` is empty", "define at least one")
        return {name: Workflow(name, self._steps(node, name)) for name, node in named.items()}

    def _steps(self, node: Node, workflow: str) -> tuple[StepSpec, ...]:
        listed = self._mapping(node, f"workflow `{workflow}`", ("steps",))["steps"]
        if not _is(listed, "seq") or not listed.value:
            raise self._error(listed, "`steps` must be a list of at least one step")
        steps: list[StepSpec] = []
        for item in listed.value:
            one = self._mapping(item, "a step")
            if len(one) != 1:
                raise self._error(item, "a step has one name", "- NAME: {model: ..., prompt: ...}")
            name, body = next(iter(one.items()))
            if name in {step.name for step in steps}:
                raise self._error(item, f"step `{name}` stands twice in `{workflow}`")
            fields = self._mapping(body, f"step `{name}`", ("model", "prompt"))
            model = self._text(fields["model"], "model")
            if not _MODEL.fullmatch(model):
                raise self._error(fields["model"], "`model` is not a model name")
            steps.append(StepSpec(name, model, self._text(fields["prompt"], "prompt")))
        return tuple(steps)

    def _mapping(self, node: Node, what: str, keys: tuple[str, ...] = ()) -> dict[str, Node]:
        """The entries of a mapping; exactly `keys` when given, else any valid names."""
        if not _is(node, "map"):
            raise self._error(node, f"{what} must be a mapping")
        found: dict[str, Node] = {}
        for key, value in node.value:
            name = self._text(key, "a key")
            if keys and name not in keys:
                raise self._error(
                    key, f"unknown key `{name}` in {what}", f"known: {', '.join(keys)}"
                )
            if not _NAME.fullmatch(name):
                raise self._error(key, f"`{name}` is not a name", "use a-z, 0-9, _ and -")
            if name in found:
                raise self._error(key, f"`{name}` stands twice in {what}")
            found[name] = value
        for name in keys:
            if name not in found:
                raise self._error(node, f"`{name}` is missing in {what}")
        return found

    def _text(self, node: Node, what: str) -> str:
        if not _is(node, "str") or not node.value.strip():
            raise self._error(node, f"`{what}` must be text", "put it in quotes")
        return str(node.value)

    def _error(self, node: Node, sentence: str, fix: str = "") -> WorkflowFileError:
        mark = node.start_mark
        return WorkflowFileError(f"{self._path}:{mark.line + 1}:{mark.column + 1}", sentence, fix)
