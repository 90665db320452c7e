"""Text on its way into XML and HTML."""

from __future__ import annotations

import html
import re

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def escape(value: object) -> str:
    """Return ``value`` as text that is safe in element content and quoted attributes, in HTML and in XML 1.0."""
    return html.escape(_NOT_XML.sub("\ufffd", str(value)), quote=True)
