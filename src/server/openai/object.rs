//! Objects in a request's body, read in one pass, each field as what it is known to be: what may not go on is not read further.

use super::skim::{Skim, Skimmed};
use crate::server::failure::Failure;
use crate::server::status::BadField;
use axum::http::StatusCode;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

/// Fields of a body, over all its objects, and values of those that are not known, at most.
const MOST_VALUES: usize = 8192;

/// An object by the names of its fields.
pub trait Object {
    /// Reads the value of a field, or skips it: what nobody knows is ignored, as OpenAI does. Of a name that is there twice the last one
    /// is meant.
    fn field<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        value: FieldValue<'_, A>,
    ) -> Result<(), A::Error>;
}

/// What all that read one body share.
#[derive(Debug)]
pub struct Reading {
    /// The field that is being read, as a client knows it.
    field: Cell<Option<&'static str>>,
    /// Fields, and values that are not known.
    others: Skim,
}

/// Reads a body into `object`.
///
/// # Errors
/// The body is no JSON object, or one of its fields is bad, which is named.
pub fn read<O: Object>(body: &[u8], object: O) -> Result<O, Failure> {
    let reading = Reading {
        field: Cell::new(None),
        others: Skim::new(MOST_VALUES),
    };
    let mut from = serde_json::Deserializer::from_slice(body);
    let read = reading.object(object).deserialize(&mut from);
    let read = read.and_then(|object| from.end().map(|()| object));
    read.map_err(|error| match reading.field.get() {
        Some(field) if error.is_data() => BadField::new(field, said(&error)).into(),
        _ => {
            let message = format!("the body is not a JSON object that can be read: {error}");
            Failure::new(StatusCode::BAD_REQUEST, message)
        }
    })
}

/// What is wrong with a field, without where in the body that is.
fn said(error: &serde_json::Error) -> String {
    let (text, place) = (
        error.to_string(),
        format!(" at line {} column {}", error.line(), error.column()),
    );
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

impl Reading {
    /// How to read an object into `into`.
    pub fn object<O>(&self, into: O) -> ReadObject<'_, O> {
        ReadObject {
            reading: self,
            into,
        }
    }
}

/// See [`Reading::object`].
#[derive(Clone, Debug)]
pub struct ReadObject<'a, O> {
    reading: &'a Reading,
    into: O,
}

impl<'de, O: Object> DeserializeSeed<'de> for ReadObject<'_, O> {
    type Value = O;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<O, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, O: Object> Visitor<'de> for ReadObject<'_, O> {
    type Value = O;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut from: A) -> Result<O, A::Error> {
        let reading = self.reading;
        while let Some(name) = from.next_key::<String>()? {
            reading.others.spend()?;
            let from = &mut from;
            self.into.field(&name, FieldValue { reading, from })?;
        }
        Ok(self.into)
    }
}

/// The value of a field, which is yet to be read.
pub struct FieldValue<'a, A> {
    pub reading: &'a Reading,
    from: &'a mut A,
}

impl<A> FieldValue<'_, A> {
    /// A value of any such type, which a client knows by `path`; `None` where it is null.
    pub fn read<'de, T: DeserializeOwned>(self, path: &'static str) -> Result<Option<T>, A::Error>
    where
        A: MapAccess<'de>,
    {
        self.read_by(path, PhantomData)
    }

    /// The same, read by `seed`.
    pub fn read_by<'de, S: DeserializeSeed<'de>>(
        self,
        path: &'static str,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error>
    where
        A: MapAccess<'de>,
    {
        let outer = self.reading.field.replace(Some(path));
        let value = self.from.next_value_seed(Nullable(seed))?;
        self.reading.field.set(outer);
        Ok(value)
    }

    /// One of those that have names.
    pub fn named<'de, T: Copy>(
        self,
        path: &'static str,
        names: &[(&str, T)],
    ) -> Result<Option<T>, A::Error>
    where
        A: MapAccess<'de>,
    {
        self.checked(path, |given: String| {
            let found = names.iter().find(|(name, _)| *name == given);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
                format!("it is one of {}", known.join(", "))
            })
        })
    }

    /// What `check` makes of a value, which says what is wrong with it otherwise.
    pub fn checked<'de, T: DeserializeOwned, U, E: fmt::Display>(
        self,
        path: &'static str,
        check: impl FnOnce(T) -> Result<U, E>,
    ) -> Result<Option<U>, A::Error>
    where
        A: MapAccess<'de>,
    {
        let reading = self.reading;
        let value = self.read(path)?;
        let checked = value.map(check).transpose();
        checked.map_err(|reason| reading.bad(path, reason))
    }

    /// Refuses a field that asks for what there is not, unless it looks like `nothing`.
    pub fn refuse<'de>(
        self,
        path: &'static str,
        reason: &str,
        nothing: Skimmed,
    ) -> Result<(), A::Error>
    where
        A: MapAccess<'de>,
    {
        let reading = self.reading;
        let looks = self.read_by(path, &reading.others)?;
        match looks.is_none_or(|looks| looks == nothing) {
            true => Ok(()),
            false => Err(reading.bad(path, reason)),
        }
    }

    /// Reads a value that nobody asks for.
    pub fn skip<'de>(self) -> Result<(), A::Error>
    where
        A: MapAccess<'de>,
    {
        self.from.next_value_seed(&self.reading.others).map(drop)
    }
}

impl Reading {
    /// An error of the field that a client knows by `path`.
    pub fn bad<E: Error>(&self, path: &'static str, reason: impl fmt::Display) -> E {
        self.field.set(Some(path));
        E::custom(reason)
    }
}

/// Reads a value that may be null.
struct Nullable<S>(S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Nullable<S> {
    type Value = Option<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or null")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(from).map(Some)
    }
}

/// What is meant by a seed: any 64 bits, signed or not.
#[derive(Clone, Copy, Debug)]
pub struct AnySeed(pub u64);

impl<'de> Deserialize<'de> for AnySeed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ReadSeed)
    }
}

struct ReadSeed;

impl Visitor<'_> for ReadSeed {
    type Value = AnySeed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number of 64 bits")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<AnySeed, E> {
        Ok(AnySeed(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<AnySeed, E> {
        Ok(AnySeed(number.cast_unsigned()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::list;
    use super::*;

    #[derive(Debug, Default)]
    struct Outer {
        number: Option<u32>,
        list: Option<Vec<u32>>,
        inner: Option<Box<Outer>>,
    }

    impl Object for Outer {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            value: FieldValue<'_, A>,
        ) -> Result<(), A::Error> {
            match name {
                "number" => self.number = value.read("number")?,
                "list" => self.list = value.read_by("list", list(3))?,
                "inner" => {
                    let inner = value.reading.object(Outer::default());
                    self.inner = value.read_by("inner", inner)?.map(Box::new);
                }
                "none" => value.refuse("none", "there is none", Skimmed::Zero)?,
                _ => value.skip()?,
            }
            Ok(())
        }
    }

    fn read(text: &str) -> Result<Outer, String> {
        let read = super::read(text.as_bytes(), Outer::default());
        read.map_err(|failure| failure.body()["error"].to_string())
    }

    #[test]
    fn fields_are_read_as_what_they_are_and_others_are_ignored() {
        let body = r#"{"x": [{"a": [1]}], "number": 1, "number": 2, "list": null, "none": 0, "inner": {"list": [4], "y": {}}}"#;
        let read = read(body).expect("an object");
        assert_eq!((read.number, read.list), (Some(2), None));
        let inner = read.inner.expect("an object");
        assert_eq!((inner.number, inner.list), (None, Some(vec![4])));
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_read_after_it() {
        for (body, param, said) in [
            (
                r#"{"number": "a", nonsense"#,
                r#""param":"number""#,
                "expected u32",
            ),
            (
                r#"{"list": [1, 2, 3, 4, nonsense"#,
                r#""param":"list""#,
                "more than 3",
            ),
            (
                r#"{"inner": {"number": -1}}"#,
                r#""param":"number""#,
                "expected u32",
            ),
            (
                r#"{"inner": {"number": 1}, "inner": 3}"#,
                r#""param":"inner""#,
                "an object",
            ),
            (r#"{"inner": []}"#, r#""param":"inner""#, "an object"),
            (
                r#"{"none": 1, nonsense"#,
                r#""param":"none""#,
                "there is none",
            ),
            ("[]", r#""param":null"#, "an object"),
            ("{} {}", r#""param":null"#, "trailing"),
            (r#"{"number": 1"#, r#""param":null"#, "EOF"),
            (r#"{"number": 1 nonsense"#, r#""param":null"#, "column"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(param), "{body}: {error}");
            assert!(error.contains(said), "{body}: {error}");
        }
    }

    #[test]
    fn errors_do_not_repeat_all_that_was_sent() {
        let long = "x".repeat(100_000);
        for body in [
            format!(r#""{long}""#),
            format!(r#"{{"number": "{long}"}}"#),
            format!(r#"{{"inner": "{long}"}}"#),
            format!(r#"{{"list": ["{long}"]}}"#),
            format!(r#"{{"number": {}}}"#, "1".repeat(100_000)),
        ] {
            let error = read(&body).unwrap_err();
            assert!(error.len() < 1000, "{error}");
        }
    }

    #[test]
    fn a_body_has_only_so_many_fields_and_unknown_values() {
        let many = MOST_VALUES + 1;
        for body in [
            format!(r#"{{"x": [{}"#, "1,".repeat(many)),
            format!("{{{}", r#""number":1,"#.repeat(many)),
            format!("{{{}", r#""x":1,"#.repeat(many)),
            format!(r#"{{"x": [{}"#, "{},".repeat(many)),
            format!(r#"{{"none": [{}"#, "1,".repeat(many)),
        ] {
            let error = read(&body).unwrap_err();
            assert!(error.contains("more than 8192 values"), "{error}");
        }
    }
}
