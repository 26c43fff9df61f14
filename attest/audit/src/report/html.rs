//! HTML in which nothing that was inserted can be markup: whatever is not a literal of this program goes through [`Html::text`]
//! or an attribute, and both escape. Characters that change how their neighbours read (controls, bidirectional overrides, what
//! has no width) are shown by number: a name must not be able to look like another.
use std::fmt::{self, Display, Write as _};

/// A document on its way.
#[derive(Debug, Default)]
pub(super) struct Html(String);

/// An attribute: a literal name and any value.
pub(super) type Attribute<'a> = (&'static str, &'a dyn Display);

impl Html {
    /// A literal of this program.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }
    /// Anything, as text.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        // Writing to a String does not fail, and a Display that fails has nothing to say.
        let _never = write!(Escape(&mut self.0), "{text}");
        self
    }
    /// An opening tag.
    pub(super) fn open(&mut self, tag: &'static str, attributes: &[Attribute<'_>]) -> &mut Self {
        self.0.push('<');
        self.0.push_str(tag);
        for (name, value) in attributes {
            self.0.push(' ');
            self.0.push_str(name);
            self.0.push_str("=\"");
            self.text(value);
            self.0.push('"');
        }
        self.0.push('>');
        self
    }
    /// A closing tag.
    pub(super) fn close(&mut self, tag: &'static str) -> &mut Self {
        self.0.push_str("</");
        self.0.push_str(tag);
        self.0.push('>');
        self
    }
    /// An element that holds text.
    pub(super) fn element(
        &mut self,
        tag: &'static str,
        attributes: &[Attribute<'_>],
        text: impl Display,
    ) -> &mut Self {
        self.open(tag, attributes).text(text).close(tag)
    }
    /// An element without content, as SVG's shapes are.
    pub(super) fn empty(&mut self, tag: &'static str, attributes: &[Attribute<'_>]) -> &mut Self {
        self.open(tag, attributes).close(tag)
    }
    /// The document.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

struct Escape<'a>(&'a mut String);

impl fmt::Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c if misleads(c) => write!(self.0, "\\u{{{:x}}}", u32::from(c))?,
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// Whether a character changes how others read, or cannot be seen.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_inserted_is_markup() {
        let mut html = Html::default();
        let hostile = "\"><script>alert('1')</script>&\u{202e}\u{200b}\n\u{feff}é日";
        html.element("p", &[("title", &hostile)], hostile);
        let escaped = "&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;\\u{202e}\\u{200b}\\u{a}\\u{feff}é日";
        assert_eq!(html.finish(), format!("<p title=\"{escaped}\">{escaped}</p>"));
    }
}
