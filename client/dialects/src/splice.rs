//! Replaces pieces of a body and leaves every other byte as it is.
use bytes::Bytes;

/// Replacements, in any order; pieces are parts of the body's own memory.
pub(crate) struct Splices<'a> {
    body: &'a Bytes,
    edits: Vec<(usize, usize, String)>,
}

impl<'a> Splices<'a> {
    pub(crate) fn of(body: &'a Bytes) -> Self {
        Self { body, edits: Vec::new() }
    }

    /// Replaces a piece.
    pub(crate) fn replace(&mut self, piece: &str, with: String) {
        if let Some(at) = self.offset(piece) {
            self.edits.push((at, piece.len(), with));
        }
    }

    /// Inserts behind the brace that an object's text starts with.
    pub(crate) fn after_brace(&mut self, object: &str, insert: &str) {
        if let Some(at) = self.offset(object) {
            self.edits.push((at + 1, 0, insert.to_owned()));
        }
    }

    /// Where a piece stands. `None`: it is not of this body.
    fn offset(&self, piece: &str) -> Option<usize> {
        let at = piece.as_ptr().addr().checked_sub(self.body.as_ptr().addr())?;
        (at.checked_add(piece.len())? <= self.body.len()).then_some(at)
    }

    /// The body with all replacements; without any, the same memory.
    pub(crate) fn apply(mut self) -> Bytes {
        if self.edits.is_empty() {
            return self.body.clone();
        }
        self.edits.sort();
        let mut out = Vec::with_capacity(self.body.len() + 64);
        let mut from = 0;
        for (at, len, with) in self.edits {
            out.extend_from_slice(self.body.get(from..at).unwrap_or_default());
            out.extend_from_slice(with.as_bytes());
            from = at + len;
        }
        out.extend_from_slice(self.body.get(from..).unwrap_or_default());
        out.into()
    }
}
