"""Every error of ours says what to do, as far as that can be seen in its text: behind a semicolon, or in so many
words."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from support.paths import ROOT
from unet_engine import errors

CLASSES = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
REMEDY = re.compile(r";|\b(give|use|put|repeat|pip install)\b")
"""What to do stands behind a semicolon, or is a command."""

SAID_ELSEWHERE = {
    # the text is made by a function or an error of ours that says it
    "refusal(": "model/onnx_outside.py, torch_file.py",
    "_not_ours(": "output/output.py",
    "_explained(": "cluster/running_scheduler.py",
    "sources.explained(": "settings/sources.py",
    "_invalid(": "volumes/ome.py",
    "_lacking(": "conversion/weights.py",
    "<mixing>": "conversion/adapt.py",
    "_other(": "importers/certificate.py",
    "{missing}": "storage/codecs.py names what to install",
    "{lacking}": "devices/opening.py names what to install",
    "<trouble>": "cluster/job_keeper.py",
    "{error} (block": "the network's own error, with where it happened",
    "--strict: {what}": "the note that it is made of",
    "{model.path.name}: {why}": "prepare/outputs.py",
    "<said>": "backends/libraries.py",
    "{setup.device}: {said}": "backends/tensorrt_api.py",
    "<str(error)>": "postprocess/sending.py: an error of ours under another exit code",
    "{path} {error}": "text_files.NotReadable",
    "{path} {advice}": "conversion/checkpoint.py",
    "{option} {brief(text)}: {error}": "the parsers of settings/text.py and units.py",
    "--tta {request.wanted.tta}: {error}": "the parser of --tta",
    "--spacing-unit: {error}": "the parser of units.py",
    "--normalize {how}: {error}": "model/normalization.py",
    "--activation {activation} does not fit": "model/spec.py",
    "--threshold {threshold} does not fit": "model/spec.py",
    "as plain weights: {_why(path, error)}": "conversion/weights.py",
    "{what} cannot be read: {error}": "an error of ours, which says it",
    "the series that it belongs to cannot be read: {error}": "an error of ours, which says it",
    "and of {name}: {error}": "model/spec.py",
    "which is not read here; {_WAYS[kind]}": "a table of ways to ONNX",
    "{option} {text}: {_LENGTHS}": "a constant that says it",
    # caught by ours, which says it in their place
    "out of memory on {": "backends/out_of_memory.py",
    "out of memory: the fake device": "backends/out_of_memory.py",
    "{setup.device}: {first_line(error)}": "backends/out_of_memory.py",
    "{self.setup.device}: {first_line(error)}": "backends/out_of_memory.py",
    "it gives {tuple(got.shape)}": "conversion/runners.py",
    "its result differs by {worst}": "conversion/runners.py",
    # cannot be reached by users
    "slot {slot} was not started": "calls in another order than the protocol's",
    "the network was closed": "calls in another order than the protocol's",
}


def text_of(node):
    """The text of a message as it stands in the source, with what is put into it in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return f"<{ast.unparse(node)}>"


@cache
def messages():
    return list(_messages())


def _messages():
    for room in ("engine", "export"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args:
                    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                    if name in CLASSES:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", text_of(node.args[0])


def without_what_is_put_in(text):
    return re.sub(r"\{[^{}]*\}", "…", text)


def test_every_error_says_what_to_do():
    silent = [
        f"{where}: {text}"
        for where, text in messages()
        if not REMEDY.search(without_what_is_put_in(text)) and not any(part in text for part in SAID_ELSEWHERE)
    ]
    assert not silent, "\n".join(silent)


DEAD_END = re.compile(r"; (such|it|they|an?|one|the|\d)\b[^:;]*\b(is|are) (not|not read|needed|left alone|safe)$")


def test_no_remedy_is_a_refusal_said_again():
    """Whoever reads that something "is not read" is where they were before."""
    found = [f"{where}: {text}" for where, text in messages() if DEAD_END.search(without_what_is_put_in(text))]
    assert not found, "\n".join(found)
    assert DEAD_END.search("a.zip unpacks to 9 bytes; such an archive is not read")


@pytest.mark.parametrize("part", SAID_ELSEWHERE)
def test_no_exception_is_kept_that_nothing_needs(part):
    assert any(part in text for _, text in messages())


def test_messages_are_one_line():
    assert len(messages()) > 400
    assert not [where for where, text in messages() if "\n" in text]


def test_a_message_without_a_remedy_is_found():
    assert not REMEDY.search(without_what_is_put_in("{path} cannot be read: {'; '.join(why)}"))
    assert Path(messages()[0][0].split(":")[0]).suffix == ".py"


OURS = re.compile(
    r"\b(journal|markers?|sums|halos?|poses?|rim|nodes|slab|lattice|candidates?|verdict|members?|sweep|ticket|anew)\b"
)
"""Words of the code, or of a dictionary, that say nothing to somebody who has read neither."""


def test_messages_have_no_words_of_the_code():
    found = [
        f"{where}: {text}"
        for where, text in messages()
        if OURS.search(without_what_is_put_in(text)) and not any(part in text for part in SAID_ELSEWHERE)
    ]
    assert not found, "\n".join(found)


def test_a_word_of_the_code_is_found():
    assert OURS.search("lost its journal while this run was writing it")
    assert not OURS.search("a summary of {len(markers)}".replace("{len(markers)}", "…"))


SIZES = re.compile(r"\{[\w.]*\b(shape|window|output_shape)\}|\{tuple\(")
"""Sizes put in as Python writes them, ``(64, 64)``, where people read 64×64."""
SIZES_OF_ARRAYS = ("has the shape {", "spacing {tuple(", "is {tuple(given[name].shape)}", "it gives {tuple(",
                   "the image has shape", "{array.ndim} axes {array.shape}", "tissue shape", "the window {window} is larger",
                   "of shape {", "window {head.window})", "window {window} has {len(window)} axes",
                   "does not take windows of {window}:")  # fmt: skip
"""Of arrays and weights of people who write Python, and of what tests have always read."""


def test_sizes_are_written_as_people_write_them():
    found = [
        f"{where}: {text}"
        for where, text in messages()
        if SIZES.search(text) and not any(part in text for part in SIZES_OF_ARRAYS)
    ]
    assert not found, "\n".join(found)
    assert SIZES.search("does not take windows of {setup.window}: …")


def test_what_is_to_be_typed_works_in_every_shell():
    """Brackets are patterns of file names to zsh: unquoted, it finds none and does nothing."""
    bare = re.compile(r"pip install [\w-]+\[")
    found = [f"{path}: {line.strip()}" for room in ("engine", "export", "docs") for path in (ROOT / room).rglob("*")
             if path.suffix in (".py", ".md") for line in path.read_text().splitlines() if bare.search(line)]  # fmt: skip
    assert not found, "\n".join(found)
    assert bare.search("pip install unet-engine[view]")


def test_no_message_names_a_kind_of_error_but_of_one_that_nobody_expected():
    found = [f"{where}: {text}" for where, text in messages() if "type(error)" in text and "unexpected" not in text]
    assert not found, "\n".join(found)


def test_an_error_of_the_system_is_told_by_its_words():
    assert errors.first_line(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    assert errors.first_line(FileNotFoundError(2, "No such file", "a.zarr")) == "No such file: 'a.zarr'"
    assert errors.first_line(OSError("the codec stopped")) == "the codec stopped"
    assert errors.first_line(TimeoutError()) == "TimeoutError"
