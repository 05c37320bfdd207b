//! Values that are not known: read over, and no further than so many of them.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;

/// How many values there may be, over all that is read by it: each element of a list is one, and each name and value of an object.
#[derive(Debug)]
pub struct Skim {
    most: usize,
    left: Cell<usize>,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skimmed {
    Null,
    False,
    Zero,
    /// A list or an object that has nothing in it.
    Empty,
    Other,
}

impl Skim {
    pub fn new(most: usize) -> Self {
        Skim {
            most,
            left: Cell::new(most),
        }
    }

    /// Takes one of the values that there may be.
    ///
    /// # Errors
    /// There are no more.
    pub fn spend<E: Error>(&self) -> Result<(), E> {
        let too_many = || E::custom(format_args!("there are more than {} values", self.most));
        let left = self.left.get().checked_sub(1).ok_or_else(too_many)?;
        self.left.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &Skim {
    type Value = Skimmed;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Skimmed, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Skim {
    type Value = Skimmed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Skimmed, E> {
        Ok(Skimmed::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Skimmed, E> {
        Ok(if value {
            Skimmed::Other
        } else {
            Skimmed::False
        })
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Skimmed, E> {
        Ok(if number == 0 {
            Skimmed::Zero
        } else {
            Skimmed::Other
        })
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Skimmed, E> {
        Ok(if number == 0 {
            Skimmed::Zero
        } else {
            Skimmed::Other
        })
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Skimmed, E> {
        Ok(if number == 0.0 {
            Skimmed::Zero
        } else {
            Skimmed::Other
        })
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Skimmed, E> {
        Ok(Skimmed::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Skimmed, A::Error> {
        let mut looks = Skimmed::Empty;
        while from.next_element_seed(self)?.is_some() {
            looks = Skimmed::Other;
            self.spend()?;
        }
        Ok(looks)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Skimmed, A::Error> {
        let mut looks = Skimmed::Empty;
        while from.next_key::<IgnoredAny>()?.is_some() {
            self.spend()?;
            self.spend()?;
            from.next_value_seed(self)?;
            looks = Skimmed::Other;
        }
        Ok(looks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn read(most: usize, text: &str) -> Result<Skimmed, serde_json::Error> {
        Skim::new(most).deserialize(&mut serde_json::Deserializer::from_str(text))
    }

    /// Values inside one.
    fn inside(value: &Value) -> usize {
        match value {
            Value::Array(list) => list.iter().map(|element| 1 + inside(element)).sum(),
            Value::Object(object) => object.values().map(|value| 2 + inside(value)).sum(),
            _ => 0,
        }
    }

    fn trees() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|object| Value::Object(object.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_is_read_to_its_end_where_it_may_be(tree in trees()) {
            let (text, size) = (tree.to_string(), inside(&tree));
            let looks = read(size, &text).expect("it has no more");
            let empty = tree.as_array().is_some_and(Vec::is_empty) || tree == serde_json::json!({});
            prop_assert_eq!(looks == Skimmed::Null, tree.is_null());
            prop_assert_eq!(looks == Skimmed::False, tree == false);
            prop_assert_eq!(looks == Skimmed::Zero, tree.as_f64() == Some(0.0));
            prop_assert_eq!(looks == Skimmed::Empty, empty);
            if size > 0 {
                let error = read(size - 1, &text).unwrap_err().to_string();
                prop_assert!(error.starts_with("there are more than"), "{}", error);
            }
        }
    }

    #[test]
    fn what_comes_after_the_last_value_is_not_looked_at() {
        for text in [
            "[1, 2, 3, 4, nonsense",
            "[[1, 2], [3, nonsense",
            r#"{"a": 1, "b": nonsense"#,
        ] {
            let error = read(3, text).unwrap_err().to_string();
            assert!(error.starts_with("there are more than 3 values"), "{error}");
        }
        assert!(read(1000, &"[".repeat(1000)).is_err(), "too deep");
    }
}
