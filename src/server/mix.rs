//! Weights by one name, for protocols that have no more: `base`, a variant, or a mix as in `kjv:0.5+holmes:0.5`.

use super::status::BadField;
use crate::engine::BASE;

/// Parts of a mix at most, before anything is looked up.
const MOST: usize = 64;

/// The mix that `name` means.
///
/// # Errors
/// A weight that is no number, or too many parts. Whether there are such variants is for the engine to say.
pub fn named(field: &'static str, name: &str) -> Result<Vec<(String, f32)>, BadField> {
    if name == BASE {
        return Ok(Vec::new());
    }
    if name.is_empty() {
        return Err(BadField::new(field, "it is empty"));
    }
    if name.split('+').count() > MOST {
        return Err(BadField::new(field, format!("it mixes more than {MOST}")));
    }
    let part = |part: &str| match part.split_once(':') {
        None => Ok((part.to_owned(), 1.0)),
        Some((name, weight)) => match weight.parse() {
            Ok(weight) => Ok((name.to_owned(), weight)),
            Err(_) => Err(BadField::new(
                field,
                "a weight is a number, as in kjv:0.5+holmes:0.5",
            )),
        },
    };
    name.split('+').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_are_read_from_one_name() {
        let mix = |name| named("model", name).expect(name);
        assert_eq!(mix("base"), []);
        assert_eq!(mix("kjv"), [("kjv".to_owned(), 1.0)]);
        let two = [("kjv".to_owned(), 0.5), ("holmes".to_owned(), -2.0)];
        assert_eq!(mix("kjv:0.5+holmes:-2"), two);
        for bad in ["", "kjv:", "kjv:x", "kjv:1:2"] {
            named("model", bad).expect_err(bad);
        }
        named("model", &"a+".repeat(64)).expect_err("too many");
    }
}
