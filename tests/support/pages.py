"""Pages of reports, read as a browser does."""

import re
from html.parser import HTMLParser


class Balance(HTMLParser):
    """Reads a page and checks that every element is closed, in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.headings, self.ids, self.references, self.text = [], [], [], [], []
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), (tag, attrs)
        self.tags.add(tag)
        self.attributes |= set(attributes)
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.references += [
            attributes[key].removeprefix("#") for key in ("href", "aria-labelledby") if key in attributes
        ]

    def handle_startendtag(self, tag, attrs):
        # in SVG alone; for HTML a browser takes such a tag for an opening one
        assert tag in ("line", "rect", "circle", "path", "polygon", "polyline", "use"), tag
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def read(html):
    """The page, which must be well formed."""
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def words(html):
    """Its text."""
    return " ".join(" ".join(read(html).text).split())
