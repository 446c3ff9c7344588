//! The first line of a program of the host: what it wants. Pure. Key type: [`Greeting`].
//!
//! `CONNECT <port>` as the tools for Firecracker and Cloud Hypervisor say it; `ACCEPT <port>` is ours.

/// Longest line, in bytes, with its end: both words with the largest port.
const MAX_LEN: usize = 32;

/// What a program wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// To connect to the guest's port.
    Connect(u32),
    /// To be what the guest reaches when it connects to this port of the host.
    Accept(u32),
}

/// What is there of the line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Greeting(Vec<u8>);

/// What a byte makes of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// It goes on.
    Open,
    /// It is over.
    Whole(Wish),
    /// It is too long, or says nothing that is known.
    Wrong,
}

impl Greeting {
    /// Takes the next byte.
    pub(super) fn push(&mut self, byte: u8) -> Line {
        if byte == b'\n' {
            return parse(&self.0).map_or(Line::Wrong, Line::Whole);
        }
        self.0.push(byte);
        if self.0.len() < MAX_LEN { Line::Open } else { Line::Wrong }
    }
}

fn parse(line: &[u8]) -> Option<Wish> {
    let (word, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    // A port of all ones means any (VMADDR_PORT_ANY), so that it is nobody's.
    let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    let port = port.filter(|&port| port != u32::MAX)?;
    match word {
        _ if word.eq_ignore_ascii_case("CONNECT") => Some(Wish::Connect(port)),
        _ if word.eq_ignore_ascii_case("ACCEPT") => Some(Wish::Accept(port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &[u8]) -> Line {
        let mut greeting = Greeting::default();
        text.iter().map(|&byte| greeting.push(byte)).find(|line| *line != Line::Open).unwrap_or(Line::Open)
    }

    #[test]
    fn reads_both_words_and_refuses_the_rest() {
        assert_eq!(all(b"CONNECT 5000\n"), Line::Whole(Wish::Connect(5000)));
        assert_eq!(all(b"connect 0\n"), Line::Whole(Wish::Connect(0)));
        assert_eq!(all(b"ACCEPT 4294967294\n"), Line::Whole(Wish::Accept(u32::MAX - 1)));
        assert_eq!(all(b"CONNECT 5000"), Line::Open);
        for wrong in
            ["\n", "CONNECT\n", "CONNECT \n", "CONNECT +1\n", "CONNECT 1 \n", "LISTEN 1\n", "CONNECT 4294967295\n"]
        {
            assert_eq!(all(wrong.as_bytes()), Line::Wrong, "{wrong}");
        }
        assert_eq!(all(&[b'C'; 100]), Line::Wrong);
        assert_eq!(all(b"CONNECT \xff\n"), Line::Wrong);
    }

    proptest! {
        #[test]
        fn decides_within_the_longest_line(bytes in proptest::collection::vec(any::<u8>(), MAX_LEN..64)) {
            prop_assert_ne!(all(&bytes), Line::Open);
        }
    }
}
