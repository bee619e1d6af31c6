"""The program in which a chat template is rendered: a process of its own, since a template is a stranger's program.

finllm/text/rendering.py starts it by this file's path; nothing of the project is imported here. Each conversation has
so many seconds of computing, after which the kernel ends the process, wherever it is; memory and length are bounded.
What a template can call and read is what transformers gives it, but for what draws by chance.
"""

import json
import resource
import signal
import sys
from datetime import datetime

from jinja2 import TemplateError, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes, and some for each of the conversations themselves


class Generation(Extension):
    """`{% generation %}`: for transformers the mark of what an assistant says; here its text and no more."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _body(self, context, caller):
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])

    def raise_exception(message):
        raise TemplateError(str(message))

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made.globals["raise_exception"] = raise_exception
    made.filters["tojson"] = tojson
    del made.filters["random"], made.globals["lipsum"]  # a prompt is to be the same every time
    return made


def rendered(template, job: dict, special: dict, most: int) -> str:
    """One conversation as text. Longer than `most` characters is an error while it is written, not after."""
    day = datetime.fromisoformat(job["day"]) if job["day"] else datetime.now()
    pieces, length = [], 0
    # `tools` and `documents` are there and hold nothing, as transformers passes them.
    for piece in template.generate(
        **special, messages=job["messages"], tools=None, documents=None, add_generation_prompt=job["asks"],
        strftime_now=day.strftime,
    ):  # fmt: skip
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise ValueError(f"it writes more than {most:,} characters")
    return "".join(pieces)


def main() -> None:
    """JSON of a template and its jobs on stdin, a line of JSON for each job on stdout, as soon as it is done."""
    text = sys.stdin.read()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + 16 * len(text),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    asked = json.loads(text)
    signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
    template, broken = None, ""
    try:
        template = environment().from_string(asked["source"])
    except Exception as error:  # of a stranger's program, any
        broken = explained(error)
    for job in asked["jobs"]:
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        found = {"error": broken}
        if template is not None:
            try:
                found = {"text": rendered(template, job, asked["special"], asked["most"])}
            except Exception as error:
                found = {"error": explained(error)}
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def explained(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {MEMORY >> 30} GiB of memory"
    line = getattr(error, "lineno", None)
    name = "" if type(error) is TemplateError else f"{type(error).__name__}: "
    return f"{name}{' '.join(str(error).split())[:300]}" + (f" (line {line})" if line else "")


if __name__ == "__main__":
    main()
