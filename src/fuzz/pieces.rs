/// Takes an input apart, for targets that need more of it than one text. Never short of anything: what is not there is 0, or
/// empty, so that a cut input is still one.
pub(crate) struct Pieces<'a>(&'a [u8]);

impl<'a> Pieces<'a> {
    pub(crate) fn of(input: &'a [u8]) -> Self {
        Self(input)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// A length, and so many bytes.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        let (piece, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        piece
    }

    pub(crate) fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// One of a few names, so that they meet; sometimes any text.
    pub(crate) fn name(&mut self) -> String {
        match self.byte() % 8 {
            at @ 0..=4 => ["a", "b", "c", "d", "*"][usize::from(at)].to_owned(),
            5 => String::new(),
            _ => self.text(),
        }
    }

    /// As many as the next byte says, below `limit`.
    pub(crate) fn several<T>(&mut self, limit: u8, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.byte() % limit).map(|_| one(self)).collect()
    }
}
