//! Puts members of objects in order while serde_json writes them, without a tree of the value. Key function: [`write`].
//!
//! A member is written where it comes; at the end of its object all are put in order in place, if they are not yet. So a type
//! whose fields stand in order costs nothing more, and a text that is spelled already (a `RawValue`) is taken as it is.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::NotCanonical;

/// The spelling of `value`.
pub(super) fn write(value: &impl Serialize) -> Result<Vec<u8>, NotCanonical> {
    let text = RefCell::new(Text::default());
    let outcome = value.serialize(&mut Serializer::with_formatter(Appending(&text), InOrder(&text)));
    let Text { bytes, fraction, .. } = text.into_inner();
    match fraction {
        Some(fraction) => Err(NotCanonical::Fraction(fraction)),
        None => Ok(outcome.map(|()| bytes)?),
    }
}

/// What is written so far: serde_json appends to it, and the ends of objects change its last part.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// Objects that are not at their end yet, outermost first.
    open: Vec<Object>,
    /// Their members, each object's behind those of the one that it is in.
    members: Vec<Member>,
    /// For putting members in order.
    spare: Vec<u8>,
    /// The number that ended the writing.
    fraction: Option<String>,
}

/// Where its parts begin.
#[derive(Clone, Copy)]
struct Object {
    /// In the bytes, after its brace.
    start: usize,
    /// In the members.
    first: usize,
}

/// Where a member and its key, with the quotes, are; without a comma.
#[derive(Clone, Copy, Default)]
struct Member {
    start: usize,
    key_end: usize,
    end: usize,
    /// Whether the key has escapes.
    is_escaped: bool,
}

impl Text {
    fn begin_object(&mut self) {
        self.open.push(Object { start: self.bytes.len(), first: self.members.len() });
    }

    fn begin_key(&mut self) {
        self.members.push(Member { start: self.bytes.len(), ..Member::default() });
    }

    fn end_key(&mut self) -> io::Result<()> {
        let Self { bytes, members, .. } = self;
        let member = members.last_mut().ok_or_else(out_of_place)?;
        member.key_end = bytes.len();
        member.is_escaped = bytes[member.start..].contains(&b'\\');
        Ok(())
    }

    fn end_value(&mut self) -> io::Result<()> {
        self.members.last_mut().ok_or_else(out_of_place)?.end = self.bytes.len();
        Ok(())
    }

    fn end_object(&mut self) -> io::Result<()> {
        let Object { start, first } = self.open.pop().ok_or_else(out_of_place)?;
        let Self { bytes, members, spare, .. } = self;
        let own = &mut members[first..];
        if !own.is_sorted_by(|one, next| key(bytes, one) <= key(bytes, next)) {
            own.sort_by(|one, other| key(bytes, one).cmp(&key(bytes, other)));
            spare.clear();
            for (at, member) in own.iter().enumerate() {
                spare.extend_from_slice(if at == 0 { b"" } else { b"," });
                spare.extend_from_slice(&bytes[member.start..member.end]);
            }
            bytes[start..].copy_from_slice(spare);
        }
        members.truncate(first);
        Ok(())
    }
}

/// serde_json ends what it did not begin.
fn out_of_place() -> io::Error {
    io::Error::other("the end of no object")
}

/// A key as text, not as it is escaped: `"` comes before `#`, and `\"` would not.
fn key<'a>(bytes: &'a [u8], member: &Member) -> Cow<'a, [u8]> {
    let quoted = &bytes[member.start..member.key_end];
    if member.is_escaped
        && let Ok(text) = serde_json::from_slice::<String>(quoted)
    {
        return Cow::Owned(text.into_bytes());
    }
    Cow::Borrowed(&quoted[1..quoted.len() - 1])
}

/// The text as serde_json's writer.
struct Appending<'a>(&'a RefCell<Text>);

impl io::Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// serde_json's own form without white space, which escapes as RFC 8785 §3.2.2.2 asks for; but for objects and fractions.
struct InOrder<'a>(&'a RefCell<Text>);

impl InOrder<'_> {
    fn refuse(&self, number: &impl ToString) -> io::Result<()> {
        self.0.borrow_mut().fraction = Some(number.to_string());
        Err(io::Error::other("a fraction"))
    }
}

impl Formatter for InOrder<'_> {
    fn write_f32<W: io::Write + ?Sized>(&mut self, _: &mut W, value: f32) -> io::Result<()> {
        self.refuse(&value)
    }

    fn write_f64<W: io::Write + ?Sized>(&mut self, _: &mut W, value: f64) -> io::Result<()> {
        self.refuse(&value)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"{")?;
        self.0.borrow_mut().begin_object();
        Ok(())
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, is_first: bool) -> io::Result<()> {
        writer.write_all(if is_first { b"" } else { b"," })?;
        self.0.borrow_mut().begin_key();
        Ok(())
    }

    fn end_object_key<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.0.borrow_mut().end_key()
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.0.borrow_mut().end_value()
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.borrow_mut().end_object()?;
        writer.write_all(b"}")
    }
}
