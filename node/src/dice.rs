//! Reads a fuzzer's octets as decisions. What is missing at the end is zero, so every input means something.

/// The octets that are left.
pub(crate) struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    pub(crate) fn new(octets: &'a [u8]) -> Self {
        Dice(octets)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn octet(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn word(&mut self) -> u32 {
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(self.take(4)) {
            *to = *from;
        }
        u32::from_be_bytes(word)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.octet()) % bound
    }

    /// At most so many octets.
    pub(crate) fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Octets behind a length of two.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.octet()) << 8 | usize::from(self.octet());
        self.take(length)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// An input that `piece` takes apart again.
pub(crate) fn pieces<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut octets = Vec::new();
    for piece in all {
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
        octets.extend(length.to_be_bytes());
        octets.extend_from_slice(&piece[..usize::from(length)]);
    }
    octets
}
