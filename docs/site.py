"""Pages of the site that lie outside docs/ are added, and links between pages go to the site's names."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# By the page's name on the site, where it lies in the repository.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "license.md": "LICENSE",
    "benchmarks.md": "benchmarks/README.md",
}
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def on_files(files, config):
    """Adds the pages."""
    for page, place in PAGES.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        content = text if place.endswith(".md") else f"# {place.capitalize()}\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """The page with the links of the repository as links of the site."""
    folder = (ROOT / PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent
    names = {(ROOT / place).resolve(): name for name, place in PAGES.items()}

    def link(match):
        target = (folder / match[2]).resolve()
        if target in names:
            return match[1] + names[target] + match[3]
        if target.is_relative_to(ROOT / "docs") and target.is_file():
            return match[1] + target.relative_to(ROOT / "docs").as_posix() + match[3]
        return match[0]

    return LINK.sub(link, markdown)
