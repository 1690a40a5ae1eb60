"""The workflow file is read strictly, and errors point at the place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from assistant_house import House, Program

from assistant.workflows.loader import SHIPPED, WorkflowFileError, load, load_apart

STEP = "- one: {model: m, prompt: p}"


def test_the_shipped_file_is_the_one_of_the_readme() -> None:
    workflows = load(SHIPPED)
    assert [(s.name, s.model, s.prompt) for s in workflows["email_management"].steps] == [
        ("extract_entities", "llm-v1", "Extract dates and contact details from the text"),
        ("classify_priority", "llm-v1", "Judge how urgent the e-mail is"),
        ("generate_reply", "llm-v2", "Draft a reply from the content"),
    ]
    assert load_apart(SHIPPED) == workflows


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("workflows: [", 1, 13, "not YAML"),
        ("workflows:\n  a:\n    steps:\n     - one: {model: m, prompt: p\n", 5, 1, "not YAML"),
        ("flows: {}\n", 1, 1, "unknown key `flows`"),
        ("workflows: {}\n", 1, 12, "`workflows` is empty"),
        ("workflows:\n  a: []\n", 2, 6, "must be a mapping"),
        ("workflows:\n  a: {steps: []}\n", 2, 14, "at least one step"),
        ("workflows:\n  a: {steps: {}}\n", 2, 14, "must be a list"),
        (
            f"workflows:\n  a:\n    steps:\n      {STEP}\n    timeout: 3\n",
            5,
            5,
            "unknown key `timeout`",
        ),
        (f"workflows:\n  a:\n    steps:\n      {STEP}\n      {STEP}\n", 5, 9, "stands twice"),
        (f"workflows:\n  A:\n    steps:\n      {STEP}\n", 2, 3, "is not a name"),
        (
            "workflows:\n  a: {steps: [x: {model: m, prompt: p}]}\n  a: {}\n",
            3,
            3,
            "`a` stands twice",
        ),
        ("workflows:\n  a:\n    steps:\n      - x: {model: m}\n", 4, 12, "`prompt` is missing"),
        ("workflows:\n  a:\n    steps:\n      - x: {model: 1, prompt: p}\n", 4, 20, "must be text"),
        (
            "workflows:\n  a:\n    steps:\n      - x: {model: m, prompt: ''}\n",
            4,
            31,
            "must be text",
        ),
        (
            "workflows:\n  a:\n    steps:\n      - x: {model: m, prompt: p, tools: []}\n",
            4,
            34,
            "unknown key `tools`",
        ),
        (
            "workflows:\n  a:\n    steps:\n      - {x: {model: m, prompt: p}, y: 1}\n",
            4,
            9,
            "one name",
        ),
        ("workflows: !!python/object:os.system {}\n", 1, 12, "must be a mapping"),
        ("a: 1\n---\nb: 2\n", 2, 1, "not YAML"),
    ],
)
def test_errors_name_file_line_and_column(
    tmp_path: Path, text: str, line: int, column: int, says: str
) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(text)
    for loading in (load, load_apart):
        with pytest.raises(WorkflowFileError) as caught:
            loading(path)
        assert caught.value.message.startswith(f"{path}:{line}:{column}: ")
        assert says in caught.value.message


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b"#" * (300 << 10), b"\x00"])
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w.yaml"
    path.write_bytes(data)
    with pytest.raises(WorkflowFileError):
        load(path)


def test_yaml_1_2_words_stay_words(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("workflows:\n  on:\n    steps:\n      - off: {model: no, prompt: 'yes'}\n")
    assert load(path)["on"].steps[0].model == "no"


def test_the_executor_does_not_start_on_a_broken_file(
    house: House, start: Callable[..., Program], tmp_path: Path
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("workflows:\n  a:\n    step: []\n")
    program = start(
        "executor",
        "--workflows",
        str(path),
        channels=house.channels,
        OPENAI_BASE_URL=house.base,
        OPENAI_API_KEY="placeholder",
    )
    assert program.process.wait(10) == 2
    assert program.process.stderr is not None
    assert f"{path}:3:5: unknown key `step`" in program.process.stderr.read().decode()
