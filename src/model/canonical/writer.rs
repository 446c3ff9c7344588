//! Writes a value in its one spelling, as it comes, without a tree of it. Key type: [`Writer`].
//!
//! Members of an object are written where they come, and put in order at its end if they are not yet: types whose fields
//! stand in order cost nothing more.

use serde::ser::{self, Serialize};
use serde_json::Value;

use super::NotCanonical;

/// How serde_json calls a [`serde_json::value::RawValue`] when it is written (`serde_json::raw::TOKEN`, not public; a test of
/// [`super::Json`] fails if it changes).
const RAW: &str = "$serde_json::private::RawValue";

/// The text so far.
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// For putting members in order.
    spare: Vec<u8>,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(512), spare: Vec::new() }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn leaf(&mut self, value: &impl Serialize) -> Result<(), NotCanonical> {
        // serde_json escapes as RFC 8785 §3.2.2.2 asks for.
        Ok(serde_json::to_writer(&mut self.bytes, value)?)
    }

    /// Begins `{"variant":`, which the caller ends with `}`.
    fn begin_variant(&mut self, variant: &str) -> Result<(), NotCanonical> {
        self.bytes.push(b'{');
        self.leaf(&variant)?;
        self.bytes.push(b':');
        Ok(())
    }

    fn items(&mut self, end: &'static str) -> Items<'_> {
        self.bytes.push(b'[');
        Items { writer: self, is_first: true, end }
    }

    fn members(&mut self, end: &'static str) -> Members<'_> {
        self.bytes.push(b'{');
        let start = self.bytes.len();
        Members { writer: self, start, members: Vec::new(), end }
    }
}

impl ser::Error for NotCanonical {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::NoJson(ser::Error::custom(message))
    }
}

/// An array that is being written.
pub(super) struct Items<'a> {
    writer: &'a mut Writer,
    is_first: bool,
    end: &'static str,
}

impl Items<'_> {
    fn item<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), NotCanonical> {
        if !std::mem::take(&mut self.is_first) {
            self.writer.bytes.push(b',');
        }
        item.serialize(&mut *self.writer)
    }

    fn finish(self) {
        self.writer.bytes.extend_from_slice(self.end.as_bytes());
    }
}

/// A member of an object: its key, and where it begins in the text, the comma before it left out.
struct Member {
    key: Key,
    start: usize,
    end: usize,
}

/// Compared as text, not as it is escaped.
enum Key {
    Field(&'static str),
    Text(String),
}

impl Key {
    fn text(&self) -> &str {
        match self {
            Self::Field(text) => text,
            Self::Text(text) => text,
        }
    }
}

/// An object that is being written.
pub(super) struct Members<'a> {
    writer: &'a mut Writer,
    /// After the brace.
    start: usize,
    members: Vec<Member>,
    end: &'static str,
}

impl Members<'_> {
    fn key(&mut self, key: Key) -> Result<(), NotCanonical> {
        if !self.members.is_empty() {
            self.writer.bytes.push(b',');
        }
        let start = self.writer.bytes.len();
        self.writer.leaf(&key.text())?;
        self.writer.bytes.push(b':');
        self.members.push(Member { key, start, end: start });
        Ok(())
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotCanonical> {
        value.serialize(&mut *self.writer)?;
        if let Some(member) = self.members.last_mut() {
            member.end = self.writer.bytes.len();
        }
        Ok(())
    }

    fn finish(mut self) {
        if !self.members.is_sorted_by(|one, next| one.key.text() <= next.key.text()) {
            self.sort();
        }
        self.writer.bytes.extend_from_slice(self.end.as_bytes());
    }

    fn sort(&mut self) {
        let Writer { bytes, spare } = &mut *self.writer;
        self.members.sort_by(|one, other| one.key.text().cmp(other.key.text()));
        spare.clear();
        for (at, member) in self.members.iter().enumerate() {
            if at > 0 {
                spare.push(b',');
            }
            spare.extend_from_slice(&bytes[member.start..member.end]);
        }
        bytes.truncate(self.start);
        bytes.extend_from_slice(spare);
    }
}

/// A struct, or what [`RAW`] stands for: a text that is spelled already.
pub(super) enum Fields<'a> {
    Members(Members<'a>),
    Spelled(&'a mut Writer),
}

impl<'a> ser::Serializer for &'a mut Writer {
    type Ok = ();
    type Error = NotCanonical;
    type SerializeSeq = Items<'a>;
    type SerializeTuple = Items<'a>;
    type SerializeTupleStruct = Items<'a>;
    type SerializeTupleVariant = Items<'a>;
    type SerializeMap = Members<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Members<'a>;

    fn serialize_bool(self, value: bool) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_i8(self, value: i8) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_i16(self, value: i16) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_i32(self, value: i32) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_i64(self, value: i64) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_u8(self, value: u8) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_u16(self, value: u16) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_u32(self, value: u32) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_u64(self, value: u64) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_f32(self, value: f32) -> Result<(), NotCanonical> {
        Err(NotCanonical::Fraction(value.to_string()))
    }

    fn serialize_f64(self, value: f64) -> Result<(), NotCanonical> {
        Err(NotCanonical::Fraction(value.to_string()))
    }

    fn serialize_char(self, value: char) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_str(self, value: &str) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), NotCanonical> {
        self.leaf(&value)
    }

    fn serialize_none(self) -> Result<(), NotCanonical> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), NotCanonical> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), NotCanonical> {
        self.leaf(&())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), NotCanonical> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), NotCanonical> {
        self.leaf(&variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), NotCanonical> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), NotCanonical> {
        self.begin_variant(variant)?;
        value.serialize(&mut *self)?;
        self.bytes.push(b'}');
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'a>, NotCanonical> {
        Ok(self.items("]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'a>, NotCanonical> {
        Ok(self.items("]"))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items<'a>, NotCanonical> {
        Ok(self.items("]"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items<'a>, NotCanonical> {
        self.begin_variant(variant)?;
        Ok(self.items("]}"))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Members<'a>, NotCanonical> {
        Ok(self.members("}"))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Fields<'a>, NotCanonical> {
        Ok(if name == RAW { Fields::Spelled(self) } else { Fields::Members(self.members("}")) })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Members<'a>, NotCanonical> {
        self.begin_variant(variant)?;
        Ok(self.members("}}"))
    }
}

impl ser::SerializeSeq for Items<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotCanonical> {
        self.item(value)
    }

    fn end(self) -> Result<(), NotCanonical> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTuple for Items<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotCanonical> {
        self.item(value)
    }

    fn end(self) -> Result<(), NotCanonical> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTupleStruct for Items<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotCanonical> {
        self.item(value)
    }

    fn end(self) -> Result<(), NotCanonical> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTupleVariant for Items<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotCanonical> {
        self.item(value)
    }

    fn end(self) -> Result<(), NotCanonical> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeMap for Members<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), NotCanonical> {
        match serde_json::to_value(key)? {
            Value::String(text) => self.key(Key::Text(text)),
            // As serde_json has it.
            Value::Number(number) => self.key(Key::Text(number.to_string())),
            _ => Err(ser::Error::custom("a key is no text")),
        }
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), NotCanonical> {
        self.value(value)
    }

    fn end(self) -> Result<(), NotCanonical> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), NotCanonical> {
        match self {
            Self::Members(members) => {
                members.key(Key::Field(key))?;
                members.value(value)
            }
            Self::Spelled(writer) => match serde_json::to_value(value)? {
                Value::String(text) => {
                    writer.bytes.extend_from_slice(text.as_bytes());
                    Ok(())
                }
                _ => Err(ser::Error::custom("what is spelled already is no text")),
            },
        }
    }

    fn end(self) -> Result<(), NotCanonical> {
        if let Self::Members(members) = self {
            members.finish();
        }
        Ok(())
    }
}

impl ser::SerializeStructVariant for Members<'_> {
    type Ok = ();
    type Error = NotCanonical;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), NotCanonical> {
        self.key(Key::Field(key))?;
        self.value(value)
    }

    fn end(self) -> Result<(), NotCanonical> {
        self.finish();
        Ok(())
    }
}
