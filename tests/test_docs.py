"""The documentation: commands are what the command line takes, those of tutorials run, links lead somewhere, and the
reference holds all that the code has."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import click
import numpy as np
import pytest
import yaml

from support.command_line import COMMAND, cli
from support.paths import DOCS, ROOT
from unet_engine import errors
from unet_engine.commands import completing
from unet_engine.commands.cli import app
from unet_engine.commands.manual import commands, write_shared
from unet_engine.settings.settings import Settings

PAGES = sorted(
    [*DOCS.rglob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "AGENTS", "SECURITY"))]
)
RUN = ["index.md", "tutorials/em.md", "tutorials/ct.md", "tutorials/mosaic.md"]
GENERATED = {f"reference/{name}.md" for name in ("cli", "settings", "api", "errors", "exit-codes", "files")}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def module(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def blocks(text, language=None):
    """The code of a page, of one language or of all."""
    found = re.findall(r"^(`{3,})(\w*)\n(.*?)^\1$", text, re.M | re.S)
    return [code for _, told, code in found if language in (None, told)]


def known_options():
    found = {name: {option for p in command.params for option in p.opts} for name, command in commands(app)}
    return {name: options | {"--help", "-h"} for name, options in found.items()}


def lines_of(text):
    """Command lines in blocks of code, continued ones as one."""
    for code in blocks(text):
        for line in code.replace("\\\n", " ").replace("unet-engine --json ", "unet-engine ").splitlines():
            for found in re.findall(r"(?:^|[;&|] *|exec )\s*(?:\$ )?(unet-engine [a-z][^;&|>]*)", line):
                yield found.split("  #")[0].split(" # ")[0]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_are_what_the_command_line_takes(path):
    known = known_options()
    for line in lines_of(path.read_text()):
        try:
            words = shlex.split(line)[1:]
        except ValueError:  # an apostrophe of prose in a table of commands
            words = line.split()[1:]
        assert words[0] in known, line
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= known[words[0]], line


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if "ct" not in p else p for p in RUN])
def test_commands_of_the_first_pages_run(page, tmp_path, monkeypatch):
    """In a folder of their own, one after the other."""
    if "ct" in page or "mosaic" in page:
        pytest.importorskip("pydicom" if "ct" in page else "geopandas")
        pytest.importorskip("nibabel" if "ct" in page else "rasterio")
    (tmp_path / "docs").symlink_to(DOCS)
    monkeypatch.chdir(tmp_path)
    count = 0
    for code in blocks((DOCS / page).read_text(), "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            if program == "unet-engine":
                said = cli(*words)
                assert said.code == 0, f"{line}\n{said.err}"
            else:
                assert program == "python"
                subprocess.run([sys.executable, *words], check=True)
            count += 1
    assert count >= 3


def test_the_navigation_names_pages_once():
    told = []

    def walk(items):
        for item in items:
            for value in item.values():
                if isinstance(value, list):
                    walk(value)
                else:
                    told.append(value)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(told) == len(set(told))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | GENERATED
    assert (
        set(told) <= there
    )  # that all are told is for `make site` to say: a page may be written before it has a place


def anchors(text):
    """As mkdocs makes them of headings."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    plain = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in re.findall(r"^#+ (.*)$", outside, re.M))
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    outside = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    for place in re.findall(r"\]\(([^)\s]+)\)", outside):
        if "://" in place:
            continue
        file, _, anchor = place.partition("#")
        target = (path.parent / file).resolve() if file else path
        if target.is_relative_to(DOCS) and target.relative_to(DOCS).as_posix() in GENERATED:
            continue
        assert target.exists(), place
        if anchor:
            assert anchor in anchors(target.read_text()), place


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_are_named_are_there(path):
    """Of a room by their path in it, all others by that in the checkout."""
    roots = [ROOT, *(ROOT / name for name in ("engine", "engine/unet_engine", "export", "export/unet_export"))]
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|hpp|cpp|cu|sh))`", path.read_text()):
        assert any((root / name).is_file() for root in roots), name


def test_contributing_tells_what_make_does():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    told = re.findall(r"`make (\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert set(targets) == set(told)


def test_the_readme_fits_a_screen():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 45
    assert text.count("![") == 1


# --- reference ---


@pytest.fixture(scope="module")
def reference():
    return module("reference").pages()


def test_the_reference_holds_all_commands_and_options(reference):
    page = reference["reference/cli.md"]
    for name, command in commands(app):
        assert f"\n## {name}\n" in page
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[0] in section


def test_the_reference_holds_all_settings_with_what_they_mean(reference):
    rows = [line for line in reference["reference/settings.md"].splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(Settings.model_fields)
    assert not [row for row in rows if row.split(" | ")[-1].strip(" |") == ""]


def test_the_reference_holds_all_exit_codes(reference):
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.UnetEngineError)]
    for kind in kinds:
        assert re.search(
            rf"^\| {kind.exit_code} \| `{kind.__name__}` \| \w", reference["reference/exit-codes.md"], re.M
        )


@pytest.mark.parametrize(
    ("command", "problem", "remedy"),
    [
        (
            ["run", "--in", "s.zarr", "--resume", "--overwrite"],
            "--resume and --overwrite exclude each other",
            "give one",
        ),
        (["finish", "no.zarr"], "does not exist", "give the --out of the run"),
    ],
)
def test_what_is_said_is_in_the_reference(reference, command, problem, remedy):
    said = cli(*command)
    assert problem in said.error
    assert remedy in said.error
    assert [line for line in reference["reference/errors.md"].splitlines() if f"{problem} | {remedy} |" in line]


def test_most_messages_say_what_to_do(reference):
    rows = [
        line for line in reference["reference/errors.md"].splitlines() if line.startswith("| ") and "|---" not in line
    ]
    rows = [row for row in rows if not row.startswith("| what is wrong")]
    assert len(rows) > 400
    assert sum(not row.rstrip("| ").count(" | ") for row in rows) < len(rows) / 8


def test_the_layout_of_files_is_that_of_a_run(reference):
    page = reference["reference/files.md"]
    assert "labels.zarr/zarr.json" in page
    assert '"complete": true' in page
    assert "/tmp" not in page


# --- what looks at the site ---


def test_a_site_is_looked_through(tmp_path):
    look = module("check").faults
    page = '<a href="b.html#x">b</a><img src="c.png"><script src="data:,"></script><a href="https://else.where/">e</a>'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<h1 id="x">x</h1>')
    (tmp_path / "c.png").write_bytes(b"")
    assert look(tmp_path) == []
    (tmp_path / "b.html").write_text('<a href="gone.html">g</a><script src="https://cdn/x.js"></script>')
    assert [fault.partition(",")[0] for fault in look(tmp_path)] == [
        "a.html leads to b.html#x",
        "b.html leads to gone.html",
        "b.html loads https://cdn/x.js",
    ]


@pytest.mark.parametrize(("url", "place"), [("index.html", "worker.js"), ("reference/api.html", "../worker.js")])
def test_a_site_on_a_disk_is_searched_by_what_lies_in_it(url, place):
    hooks = module("hooks")
    page = f'<script src="{hooks.FETCHED}"></script>'
    assert hooks.on_post_page(page, SimpleNamespace(url=url), {}) == f'<script src="{place}"></script>'
    assert hooks.on_post_template(page, "404.html", {}) == '<script src="/worker.js"></script>'
    assert (DOCS / "site" / hooks.WORKER).is_file()


def test_a_site_shows_lists_titles_and_options_as_they_are_meant():
    hooks = module("hooks")
    text = "Said of\n- one\n  more\n- two\n\n```\na\n- b\n```\n1. c\n"
    assert hooks.listed(text) == text.replace("of\n-", "of\n\n-").replace("```\n1", "```\n\n1")
    assert hooks.listed(hooks.listed(text)) == hooks.listed(text)
    titles = {"how/volumes.md": "Volumes"}
    assert (
        hooks.titled("see [volumes.md](../how/volumes.md#x)", titles, "a/b.md") == "see [Volumes](../how/volumes.md#x)"
    )
    assert hooks.titled("see [ours](volumes.md)", titles, "how/b.md") == "see [ours](volumes.md)"
    assert hooks.unbroken("<code>--a-b</code>") == '<code class="whole">--a-b</code>'


def test_types_and_remedies_are_written_as_people_would(reference):
    page = reference["reference/settings.md"]
    assert "| `--overlap` | `float | auto` |" in page
    assert "FieldInfo" not in page
    assert "\\|" not in page
    part = module("reference")._parted
    assert part("--rate x: give the price, e.g. 3EUR") == ("--rate x", "give the price, e.g. 3EUR")
    assert part("a: b; use c") == ("a: b", "use c")


@pytest.mark.parametrize("page", RUN)
def test_pages_that_are_followed_name_the_extras_that_their_commands_need(page):
    text = (DOCS / page).read_text()
    named = {extra for found in re.findall(r"\[([a-z,]+)\]'", text) for extra in found.split(",")}
    commands = "\n".join(lines_of(text))
    needed = {"components": r"^unet-engine components", "polygons": r"^unet-engine polygons", "view": r"^unet-engine view",
              "nifti": r"\.nii", "dicom": r"\.dcm", "nnunet": "nnUNetTrainer"}  # fmt: skip
    assert {extra for extra, sign in needed.items() if re.search(sign, commands, re.M)} <= named


def test_a_class_of_errors_says_nothing_of_others(reference):
    rows = reference["reference/exit-codes.md"].splitlines()
    assert [row for row in rows if "(--keep-going) |" in row]


# --- shell and man ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(shell):
    said = cli("completion", shell)
    assert said.code == 0
    assert "_UNET_ENGINE_COMPLETE" in said.out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("run --rep", "plain,--report"),
        ("ru", "plain,run"),
        ("run --in sc", "file,sc"),
        ("info sc", "file,sc"),
        ("run --tiling a", "plain,auto"),
        ("bench --precision fp32,b", "plain,fp32,bf16"),
    ],
)
def test_completion_knows_commands_options_and_files(words, found):
    asked = f"unet-engine {words}"
    environment = {
        "COMP_WORDS": asked,
        "COMP_CWORD": str(len(asked.split()) - 1),
        "_UNET_ENGINE_COMPLETE": "bash_complete",
    }
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False, env=environment)
    assert found in done.stdout.splitlines(), done.stderr


def test_completion_knows_what_every_setting_lists():
    run, context = app.commands["run"], click.Context(app)
    options = {str(option.name): option for option in run.params}
    for name, hint in get_type_hints(Settings).items():
        words = [word for word in re.findall(r"(?<!class )'([a-z0-9_]+)'", str(hint)) if name in options]
        found = [item.value for item in options[name].shell_complete(context, "")] if words else []
        assert sorted(set(words) - set(found)) == [], name


@pytest.mark.parametrize("name", sorted(completing.WORDS.keys() & Settings.model_fields.keys() - {"folds"}))
def test_words_that_are_offered_are_taken(name):
    for word in completing.WORDS[name]:
        if word[-1] not in ":=":  # figures follow
            Settings.model_validate({"input": "a.zarr", "model": "m.onnx", "out": "b.zarr", name: word})


def test_bash_completes_behind_an_equals_sign():
    program = Path(sys.executable).with_name("unet-engine")
    asking = f"COMP_WORDS=({program} run --grid = s); COMP_CWORD=4; _unet_engine_completion {program}"
    script = cli("completion", "bash").out.replace("complete -o nosort", "#") + f'{asking}; echo "${{COMPREPLY[*]}}"'
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False).stdout == "scan\n"


def test_an_installation_has_man_page_and_completions(tmp_path):
    write_shared(app, tmp_path)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4
    page = tmp_path / "man/man1/unet-engine.1"
    assert page.read_text().isascii()
    if groff := shutil.which("groff"):
        command = [groff, "-man", "-ww", "-Tutf8", page]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


def test_the_man_page_holds_all_commands():
    said = cli("manual")
    assert said.code == 0
    for name, _ in commands(app):
        assert f"\n.SH {name.upper()}\n" in said.out
    assert r"\fB\-\-report FILE.html\fR" in said.out
    assert not [line for line in said.out.splitlines() if line.startswith("'")]


def test_the_middle_of_a_public_volume_is_cut_out(tmp_path):
    tensorstore, tifffile = pytest.importorskip("tensorstore"), pytest.importorskip("tifffile")
    address = f"file://{tmp_path}/volume/"
    volume = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": address, "create": True,
        "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
        "scale_metadata": {"size": [600, 20, 7], "voxel_offset": [5, 6, 7], "encoding": "raw", "chunk_size": [64, 64, 64],
                           "resolution": [8, 8, 8]}}).result()  # fmt: skip
    voxels = np.random.default_rng(0).integers(0, 255, (600, 20, 7), np.uint8)
    volume[..., 0].write(voxels).result()
    script = ROOT / "docs" / "tutorials" / "make.py"
    subprocess.run([sys.executable, script, "cut", address, tmp_path / "cut.tif"], check=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "cut.tif"), voxels[40:560].T)


# --- what is packed ---

PACKAGING = ROOT / "packaging"


def project():
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_recipe_asks_for_what_the_project_asks_for():
    text = re.sub(r"\$\{\{ (.*?) \}\}", "filled in", (PACKAGING / "recipe.yaml").read_text())
    recipe = yaml.safe_load(text)
    run = [line.replace(" ", "") for line in recipe["requirements"]["run"]]
    assert run == ["python" + project()["project"]["requires-python"], *project()["project"]["dependencies"]]
    assert recipe["context"]["version"] == project()["project"]["version"]


def test_extras_are_made_of_extras_that_are_there():
    extras = project()["project"]["optional-dependencies"]
    for name in ("nifti", "dicom", "geo", "cloud", "gpu", "all"):
        assert name in extras
    for packages in extras.values():
        for package in packages:
            for part in re.findall(r"^unet-engine\[(.*)\]", package):
                assert set(part.split(",")) <= extras.keys()


def test_images_are_pinned_and_run_as_nobody():
    text = (PACKAGING / "Containerfile").read_text()
    assert re.findall(r"^ARG BASE(.*)$", text, re.M) == ["", ""]  # no default, neither for the images nor for the check
    assert "FROM ${BASE}\n" in text
    assert re.search(r"^USER ([1-9]\d{3,})$", text, re.M)
    extras = re.search(r"^ARG EXTRAS=(\w+)$", text, re.M)[1]
    assert extras in project()["project"]["optional-dependencies"]
    assert set(re.findall(r"^From: (.*)$", (PACKAGING / "unet-engine.def").read_text(), re.M)) == {"{{ BASE }}"}


def shell(text, **variables):
    """What a line of a recipe's shell says, and how it ends."""
    for name, value in variables.items():
        text = re.sub(rf"\$\{{{name}\}}|\{{\{{ {name} \}}\}}", value, text)
    return subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["Containerfile", "unet-engine.def"])
def test_an_image_that_is_not_pinned_is_refused(name):
    check = re.search(r"case .* esac", (PACKAGING / name).read_text())[0]
    pinned = shell(check, BASE="docker.io/library/python:3.13-slim@sha256:" + 64 * "a")
    assert (pinned.returncode, pinned.stderr) == (0, "")
    loose = shell(check, BASE="docker.io/library/python:3.13-slim")
    assert loose.returncode == 1
    assert loose.stderr == "BASE=docker.io/library/python:3.13-slim is not pinned: give NAME@sha256:DIGEST\n"


@pytest.mark.parametrize("name", ["Containerfile", "unet-engine.def"])
def test_what_recipes_name_is_there(name):
    """Files of the checkout that they copy, the command they start, and the extras, also those the pages name."""
    text = (PACKAGING / name).read_text()
    extras = set(re.findall(r"EXTRAS=([\w,]+)", text + (ROOT / "docs" / "install.md").read_text()))
    assert {part for some in extras for part in some.split(",")} <= project()["project"]["optional-dependencies"].keys()
    copied = re.findall(r"^(?:COPY|    )\s*(\S+) /source$", text, re.M)
    assert copied == ["."]
    ignored = (PACKAGING / "Containerfile.dockerignore").read_text().split()
    needed = ["pyproject.toml", "CMakeLists.txt", "README.md", *project()["project"]["license-files"],
              *project()["tool"]["scikit-build"]["wheel"]["packages"], "cpp_ext"]  # fmt: skip
    for path in needed:
        assert (ROOT / path).exists(), path
        assert not any(path == line or path.startswith(f"{line}/") for line in ignored), path
    assert "unet-engine" in project()["project"]["scripts"]
    assert re.search(r'ENTRYPOINT \["unet-engine"\]|exec unet-engine "\$@"', text)


@pytest.fixture(scope="module")
def try_images():
    """What does what the recipes say; here only what it reads in them."""
    spec = importlib.util.spec_from_file_location("try_images", PACKAGING / "try_images.py")
    module = sys.modules["try_images"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["Containerfile", "unet-engine.def"])
def test_what_is_tried_of_a_recipe_is_all_that_it_says(try_images, name):
    text = (PACKAGING / name).read_text()
    build, final = try_images.stages_of(PACKAGING / name)
    assert (build.name, build.steps[0][0]) == ("build", "COPY" if name.endswith(".def") else "RUN")
    said = "\n".join(step for stage in (build, final) for _, step in stage.steps)
    for command in re.findall(r"apt-get \w+|pip \w+|useradd --uid \d+|rm -rf \S+|unet-engine --version", text):
        assert command in said
    assert ("COPY", ". . /source") in build.steps
    assert ("COPY", "build /wheels /wheels") in final.steps
    assert (final.start, final.default, final.user) == (["unet-engine"], ["--help"], "10001")
    assert final.arguments["EXTRAS"] == "all"


def test_nothing_of_a_recipe_is_passed_over(try_images, tmp_path):
    path = tmp_path / "Containerfile"
    for line in ("ADD x /x", "SHELL x", "FROM debian"):
        path.write_text(f'ARG BASE\nFROM ${{BASE}}\n{line}\nENTRYPOINT ["x"]\n')
        with pytest.raises(ValueError, match=line.split()[0]):
            try_images.stages_of(path)
    path.write_text("ARG BASE\nFROM ${BASE}\nRUN x\n")
    with pytest.raises(ValueError, match="nothing says what is started"):
        try_images.stages_of(path)


def test_what_is_kept_out_of_a_build_is_not_copied(try_images):
    patterns = (PACKAGING / "Containerfile.dockerignore").read_text().split()
    assert try_images.ignored("build/x", patterns)
    assert not try_images.ignored("engine/build.py", patterns)
    assert not try_images.ignored("pyproject.toml", patterns)


def test_the_conda_recipe_names_what_is_there():
    text = re.sub(r"\$\{\{ (.*?) \}\}", "filled in", (PACKAGING / "recipe.yaml").read_text())
    recipe = yaml.safe_load(text)
    source = (PACKAGING / recipe["source"]["path"]).resolve()
    assert (source / "pyproject.toml").is_file()
    assert (source / recipe["about"]["license_file"]).is_file()
    entries = [f"{name} = {place}" for name, place in project()["project"]["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == entries
    host = {line.replace(" ", "") for line in recipe["requirements"]["host"]}
    assert set(project()["build-system"]["requires"]) <= host
    cmake = project()["tool"]["scikit-build"]["cmake"]["version"]
    assert f"cmake {cmake}" in recipe["requirements"]["build"]
    for line in (line for test in recipe["tests"] for line in test.get("script", [])):
        assert line.split()[0] in project()["project"]["scripts"]


@pytest.mark.parametrize("platform", ["linux-64", "linux-aarch64", "osx-arm64"])
def test_the_conda_recipe_renders(platform):
    """By the tool that builds it, which reads the file of variants beside a recipe by itself."""
    rattler = pytest.importorskip("rattler_build", reason="pip install py-rattler-build renders the recipe")
    where = rattler.PlatformConfig(target_platform=platform)
    variants = rattler.VariantConfig.from_file_with_context(
        PACKAGING / "variants.yaml", rattler.JinjaConfig(platform=where)
    )
    found = rattler.Stage0Recipe.from_file(PACKAGING / "recipe.yaml").render(
        variants, rattler.RenderConfig(platform=where)
    )
    recipes = [variant.recipe.to_dict() for variant in found]
    assert {recipe["build"]["string"][:5] for recipe in recipes} == {"py311", "py312", "py313", "py314"}
    for recipe in recipes:
        assert "{{" not in str(recipe["requirements"])
        assert any(line.endswith(f"xx_{platform}") for line in recipe["requirements"]["build"])


def test_the_script_of_the_wheels_parses():
    subprocess.run(["bash", "-n", PACKAGING / "wheels.sh"], check=True)


def test_what_cibuildwheel_is_told_it_knows():
    options = pytest.importorskip("cibuildwheel.options", reason="pip install cibuildwheel reads its settings")
    reader = options.OptionsReader(ROOT / "pyproject.toml", platform="linux", env={})
    assert reader.get("build", option_format=options.ListFormat(sep=" ")) == "cp311-* cp312-*"


def test_the_lock_has_what_runs_need():
    import tomllib

    locked = {p["name"]: p for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    needed = {re.split(r"[\[<>=; ]", line)[0].lower() for line in project()["project"]["dependencies"]}
    assert needed <= {d["name"] for d in locked["unet-engine"]["dependencies"]}
    assert all("hash" in wheel for p in locked.values() for wheel in p.get("wheels", []))
