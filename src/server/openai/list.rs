//! Lists in a request's body, read no further than they may be long.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// How to read a list of at most so many elements: one more ends it.
#[derive(Clone, Copy, Debug)]
pub struct BoundedList<S> {
    most: usize,
    element: S,
    /// Whether a string by itself is a list of one.
    or_one: bool,
}

/// A list of what `element` reads.
pub fn list_of<S>(most: usize, element: S) -> BoundedList<S> {
    BoundedList {
        most,
        element,
        or_one: false,
    }
}

/// A list of any such type.
pub fn list<T>(most: usize) -> BoundedList<PhantomData<T>> {
    list_of(most, PhantomData)
}

impl<S> BoundedList<S> {
    /// A string by itself is a list of one, too.
    pub fn or_one(self) -> Self {
        BoundedList {
            or_one: true,
            ..self
        }
    }
}

impl<'de, S: DeserializeSeed<'de> + Clone> DeserializeSeed<'de> for BoundedList<S> {
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Clone> Visitor<'de> for BoundedList<S> {
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.or_one {
            "a string or a list"
        } else {
            "a list"
        })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        match self.or_one {
            true => Ok(vec![self.element.deserialize(StrDeserializer::new(text))?]),
            false => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = from.next_element_seed(self.element.clone())? {
            if elements.len() == self.most {
                let most = self.most;
                return Err(A::Error::custom(format_args!(
                    "it has more than {most} elements"
                )));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<S: for<'de> DeserializeSeed<'de>>(
        seed: S,
        text: &str,
    ) -> Result<<S as DeserializeSeed<'_>>::Value, String> {
        let mut from = serde_json::Deserializer::from_str(text);
        seed.deserialize(&mut from)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn lists_end_where_they_may_not_go_on() {
        let numbers = list::<u32>(3);
        assert_eq!(read(numbers, "[]"), Ok(vec![]));
        assert_eq!(read(numbers, "[1, 2, 3]"), Ok(vec![1, 2, 3]));
        // What comes after is not even looked at.
        let error = read(numbers, "[1, 2, 3, 4, nonsense").unwrap_err();
        assert!(error.starts_with("it has more than 3 elements"), "{error}");
        for bad in ["3", "\"a\"", "{}", "[\"a\"]", "[-1]", "[1"] {
            assert!(read(numbers, bad).is_err(), "{bad}");
        }
        let nested = list_of(2, numbers);
        assert_eq!(read(nested, "[[1], [2, 3]]"), Ok(vec![vec![1], vec![2, 3]]));
        assert!(read(nested, "[[1, 2, 3, 4]]").is_err());
        let texts = list::<String>(2).or_one();
        assert_eq!(read(texts, r#""a\n""#), Ok(vec!["a\n".to_owned()]));
        assert_eq!(read(texts, r#"["a"]"#), Ok(vec!["a".to_owned()]));
        assert!(read(texts, r#"["a", "b", "c"]"#).is_err());
    }
}
