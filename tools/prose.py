"""Check the English of documents: words that readers stumble over, and sentences that are too long.

    python tools/prose.py README.md docs properties

Prints ``file:line: phrase -> what to write`` and exits with 1 if it found anything. Code blocks and code spans are
skipped. Of YAML files only the comments are read; of Python files the comments, the texts and the names of tests.
"""

import io
import re
import sys
import tokenize
from pathlib import Path

MOST_WORDS = 40
# Python 3.12 and later divides f-strings into several tokens.
_READ = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
RULES = {
    r"(?<![Tt]here )\b(?:is|are|was|were) no (?!longer|more|less|better|worse|slower)\w+": "is not a, are not",
    r"\bt(?:old|ells)\b": "reported, warns, shows, logged",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:go|goes|going|went) on\b": "continue",
    r"\btakes? no part\b|\bdo(?:es)? nothing\b": "is ignored, has no effect",
    r"\b(?:stand|stands|lie|lies) in\b": "is defined in, is stored in",
    r"\b[Bb]eside other work\b": "on a busy machine",
    r"\banew\b": "again",
    r"\bin (?:the )?place of\b": "instead of",
    r"\bforeign (?:settings?|files?|models?|checkpoints?|data)\b": "of another model, of another run",
    r"\bwhat one \w+, another\b": "two ... never",
    r"\bas far as that goes\b|\bof one's own\b": "as far as possible, your own",
    r"\bwhere there is none\b|\bof which less is better\b": "otherwise; lower is better",
}


def lines_of(path):
    """Yield (line number, text) of what people read in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            is_test = token.type == tokenize.NAME and token.string.startswith("test_")
            if is_test or token.type in _READ:
                read = token.string.replace("_", " ") if is_test else token.string
                for offset, line in enumerate(read.splitlines()):
                    yield token.start[0] + offset, line
        return
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif path.suffix == ".yaml":
            yield number, line.partition("#")[2]
        elif not fenced and not line.startswith("    "):
            yield number, line


def problems(path):
    """Return what is wrong in a file: list of str."""
    found, sentence, start = [], [], 0
    for number, line in lines_of(path):
        plain = re.sub(r"`[^`]*`", "code", line)
        for rule, remedy in RULES.items():
            for match in re.finditer(rule, plain):
                found.append(f"{path}:{number}: {match[0]!r} -> {remedy}")
        if path.suffix != ".md" or line.startswith(("|", "#", "![")) or not line.strip():
            sentence = []
            continue
        if re.match(r"\s*(?:[-*]|\d+\.) ", line):
            sentence = []
        for word in plain.split():
            start = start if sentence else number
            sentence.append(word)
            if len(sentence) == MOST_WORDS + 1:
                found.append(f"{path}:{start}: more than {MOST_WORDS} words in a sentence -> divide it")
            if re.search(r"[.:;?!][)*\]]*$", word):
                sentence = []
    return found


def main(arguments):
    """Check files and folders; return the exit code."""
    files = []
    for path in map(Path, arguments):
        inside = path.rglob("*") if path.is_dir() else [path]
        files += [file for file in inside if file.suffix in (".md", ".yaml", ".py")]
    found = [problem for file in sorted(files) for problem in problems(file)]
    print("\n".join(found) if found else f"{len(files)} files read well")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
