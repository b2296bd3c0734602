"""Templates filled in: everything escaped, style and script inside, and nothing allowed to load from anywhere."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

HERE = Path(__file__).parent


def rendered(template: str, data: Any, **values: Any) -> str:
    """The page of a template; it carries ``data`` as JSON. ``ValueError`` where JSON cannot hold that."""
    script = (HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(
        script=Markup(script),  # ours, as is the style
        digest=digest,  # the page's own script runs and no other, should one ever slip in
        style=Markup((HERE / "page.css").read_text("utf-8")),
        data=htmlsafe_json_dumps(data, dumps=json.dumps, allow_nan=False),
        **values,
    )
