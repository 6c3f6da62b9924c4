//! What a JSON parser lets pass, found in one pass over the text.

use super::Flaw;

/// How deep values may lie inside each other.
pub(super) const MAX_DEPTH: usize = 128;

/// How many keys of open objects are kept before the thorough check takes over.
const KEPT: usize = 64;

/// Shorter numbers without an exponent fit an `f64`.
const ALWAYS_FINITE: usize = 308;

/// Looks for nesting that is too deep, lone surrogates, numbers beyond any `f64`, and keys that may repeat.
///
/// It does not check the grammar: up to the first place where the text is no JSON it sees what a parser would, and a
/// parser stops there.
///
/// # Errors
/// What no valid input has. The answer tells whether keys must be compared by the thorough check.
pub(super) fn scan(text: &str) -> Result<Keys, Flaw> {
    let mut scan = Scan {
        text,
        at: 0,
        objects: 0,
        depth: 0,
        key_next: false,
        first_key: [0; MAX_DEPTH],
        kept: 0,
        signatures: [0; KEPT],
        spans: [(0, 0); KEPT],
        keys: if u32::try_from(text.len()).is_ok() { Keys::Differ } else { Keys::Unsure },
    };
    scan.run()?;
    Ok(scan.keys)
}

/// What is known of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// No object has a key twice.
    Differ,
    /// One may: there are many of them, or escapes in them, or two that look alike.
    Unsure,
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    /// One bit for each open value, the innermost lowest: 1 for an object.
    objects: u128,
    depth: usize,
    /// Whether the next string is a key.
    key_next: bool,
    /// For each open value, how many keys were kept before it.
    first_key: [u8; MAX_DEPTH],
    /// Keys of all open objects, outer ones first.
    kept: usize,
    /// Told apart by these first: keys that differ here differ.
    signatures: [u64; KEPT],
    spans: [(u32, u32); KEPT],
    keys: Keys,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<(), Flaw> {
        while let Some(&byte) = self.text.as_bytes().get(self.at) {
            self.at += 1;
            match byte {
                b'"' => self.string()?,
                b'{' => self.open(true)?,
                b'[' => self.open(false)?,
                b'}' | b']' => self.close(),
                b',' => self.key_next = self.objects & 1 == 1,
                b'-' | b'0'..=b'9' => self.number()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, object: bool) -> Result<(), Flaw> {
        let first = self.first_key.get_mut(self.depth).ok_or(Flaw::TooDeep)?;
        *first = self.kept as u8;
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(object);
        self.key_next = object;
        Ok(())
    }

    fn close(&mut self) {
        // At depth 0 the text is no JSON; what follows does not matter.
        self.depth = self.depth.saturating_sub(1);
        self.kept = self.first_key[self.depth].into();
        self.objects >>= 1;
        self.key_next = false;
    }

    /// Passes a string whose opening quote was read.
    fn string(&mut self) -> Result<(), Flaw> {
        let start = self.at;
        let mut plain = true;
        loop {
            self.at = quote_or_backslash(self.text.as_bytes(), self.at);
            match self.text.as_bytes().get(self.at) {
                Some(b'"') => break,
                Some(_) => self.escape()?,
                None => return Ok(()),
            }
            plain = false;
        }
        let end = self.at;
        self.at += 1;
        if self.key_next {
            self.key_next = false;
            self.key(start, end, plain);
        }
        Ok(())
    }

    /// Passes the escape that begins here; a malformed one is the parser's to refuse.
    fn escape(&mut self) -> Result<(), Flaw> {
        let rest = self.text.as_bytes().get(self.at + 1..).unwrap_or_default();
        self.at += 2;
        let Some(unit) = utf16_unit(rest) else { return Ok(()) };
        self.at += 4;
        match unit {
            0xd800..=0xdbff => match rest.get(5..).and_then(|next| utf16_unit(next.strip_prefix(b"\\")?)) {
                Some(0xdc00..=0xdfff) => {
                    self.at += 6;
                    Ok(())
                }
                _ => Err(Flaw::LoneSurrogate),
            },
            0xdc00..=0xdfff => Err(Flaw::LoneSurrogate),
            _ => Ok(()),
        }
    }

    /// Passes a number whose first byte was read.
    fn number(&mut self) -> Result<(), Flaw> {
        let start = self.at - 1;
        let mut exponent = false;
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'0'..=b'9' | b'.' | b'+' | b'-' => {}
                b'e' | b'E' => exponent = true,
                _ => break,
            }
            self.at += 1;
        }
        if exponent || self.at - start > ALWAYS_FINITE {
            let number = self.text.get(start..self.at).unwrap_or_default().parse::<f64>();
            if number.is_ok_and(f64::is_infinite) {
                return Err(Flaw::NumberOutOfRange);
            }
        }
        Ok(())
    }

    fn key(&mut self, start: usize, end: usize, plain: bool) {
        if self.keys == Keys::Unsure {
            return;
        }
        let bytes = self.text.as_bytes();
        let first = usize::from(self.first_key[self.depth.saturating_sub(1)]);
        let key = &bytes[start..end];
        let signature = signature(key);
        let alike = self.signatures[first..self.kept]
            .iter()
            .zip(&self.spans[first..self.kept])
            .any(|(&other, &(start, end))| other == signature && bytes[start as usize..end as usize] == *key);
        if alike || !plain || self.kept == KEPT {
            self.keys = Keys::Unsure;
            return;
        }
        self.signatures[self.kept] = signature;
        self.spans[self.kept] = (start as u32, end as u32);
        self.kept += 1;
    }
}

/// The length, and the last seven bytes: names with a common beginning are told apart.
fn signature(key: &[u8]) -> u64 {
    let mut word = [0; 8];
    let tail = key.len().min(7);
    word[..tail].copy_from_slice(&key[key.len() - tail..]);
    word[7] = key.len() as u8;
    u64::from_le_bytes(word)
}

/// Where the next quote or backslash is, or the end.
fn quote_or_backslash(bytes: &[u8], from: usize) -> usize {
    // Most strings and most ways between escapes are short: two words by hand, before the machinery starts.
    let mut at = from;
    for _ in 0..2 {
        let Some(word) = bytes.get(at..at + 8).and_then(|word| word.try_into().ok()) else { break };
        let found = stops(u64::from_le_bytes(word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    memchr::memchr2(b'"', b'\\', rest).map_or(bytes.len(), |position| at + position)
}

/// The high bit of each byte that is a quote or a backslash; bits above the lowest of them mean nothing.
fn stops(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const QUOTES: u64 = u64::from_le_bytes([b'"'; 8]);
    const BACKSLASHES: u64 = u64::from_le_bytes([b'\\'; 8]);
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    zero_bytes(word ^ QUOTES) | zero_bytes(word ^ BACKSLASHES)
}

/// The four digits behind a `u`.
fn utf16_unit(escape: &[u8]) -> Option<u16> {
    let [b'u', digits @ ..] = escape.get(..5)? else { return None };
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)? as u16))
}
