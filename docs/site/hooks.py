"""What mkdocs calls as it builds the site: the pages of the reference are made, and what GitHub shows by itself is said
so that this site does, too."""

import importlib.util
import re
from pathlib import Path, PurePosixPath

HERE = Path(__file__).parent


def on_files(files, config):
    """Add what is generated, and how it looks."""
    from mkdocs.structure.files import File

    spec = importlib.util.spec_from_file_location("reference", HERE / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    for name in ("site.css", WORKER):
        files.append(File.generated(config, name, content=(HERE / name).read_text(encoding="utf-8")))
    return files


WORKER = "worker.js"
FETCHED = "https://unpkg.com/iframe-worker/shim"
"""What Material's `offline` loads so that a site on a disk can be searched."""


def on_post_page(output, page, config):
    up = "../" * page.url.count("/")
    return output.replace(FETCHED, up + WORKER)


def on_post_template(output_content, template_name, config):
    return output_content.replace(FETCHED, f"/{WORKER}")  # 404.html, which only servers show


def on_page_markdown(markdown, page, config, files):
    return titled(listed(markdown), _titles(config["nav"]), page.file.src_uri)


def on_page_content(html, page, config, files):
    return unbroken(html)


ITEM = re.compile(r"([-*]|\d+\.) ")


def listed(markdown: str) -> str:
    """With a blank line before each list: without one it is a line of the paragraph for this Markdown, not for
    GitHub's."""
    lines: list[str] = []
    fenced = within = False
    for line in markdown.split("\n"):
        fenced ^= line.startswith("```")
        if not fenced and ITEM.match(line) and not within and lines and lines[-1].strip():
            lines.append("")
        within = not fenced and (bool(ITEM.match(line)) or (within and line.startswith(" ")))
        lines.append(line)
    return "\n".join(lines)


LINK = re.compile(r"\[([\w-]+\.md)\]\(([^)#\s]+\.md)(#[^)\s]*)?\)")


def titled(markdown: str, titles: dict[str, str], page: str) -> str:
    """Links that are called as the file is (`[volumes.md](volumes.md)`) have the page's title: nobody sees files here."""

    def named(match: re.Match[str]) -> str:
        parts: list[str] = []
        for part in (PurePosixPath(page).parent / match[2]).parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        title = titles.get("/".join(parts), match[1])
        return f"[{title}]({match[2]}{match[3] or ''})"

    return LINK.sub(named, markdown)


def _titles(nav: list) -> dict[str, str]:
    """The title of each page, by its path."""
    found = {}
    for entry in nav:
        for title, below in entry.items():
            found.update(_titles(below) if isinstance(below, list) else {below: title})
    return found


def unbroken(html: str) -> str:
    """Code of a word or two stays in one line: at its hyphens, browsers break `--option` apart."""
    return re.sub(r"<code>([^<\n]{1,26})</code>", r'<code class="whole">\1</code>', html)
