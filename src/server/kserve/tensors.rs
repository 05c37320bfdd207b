//! The few tensors of a request for text, from either of the two ways in which clients send them.

use crate::kserve as pb;
use crate::server::status::BadField;
use pb::infer_parameter::ParameterChoice;
use pb::model_infer_request::InferInputTensor;

/// Elements of one tensor at most.
const MOST_ELEMENTS: i64 = 1024;

/// The elements of a tensor, or a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    Flags(Vec<bool>),
    Whole(Vec<i128>),
    Real(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

/// The names that inputs, and parameters, may have.
pub const INPUTS: [(&str, pb::DataType); 7] = [
    ("text_input", pb::DataType::TypeString),
    ("max_tokens", pb::DataType::TypeInt32),
    ("stream", pb::DataType::TypeBool),
    ("stop", pb::DataType::TypeString),
    ("temperature", pb::DataType::TypeFp32),
    ("top_p", pb::DataType::TypeFp32),
    ("seed", pb::DataType::TypeUint64),
];

/// Everything that a request says, by the names of `INPUTS`.
#[derive(Debug, Default)]
pub struct Inputs(Vec<(&'static str, Elements)>);

impl Inputs {
    /// Tensors first; parameters of the same names where there is no tensor.
    ///
    /// # Errors
    /// The first tensor that has an unknown name or is not what its shape and datatype say.
    pub fn read(request: &mut pb::ModelInferRequest) -> Result<Inputs, BadField> {
        let (tensors, raw) = (
            std::mem::take(&mut request.inputs),
            std::mem::take(&mut request.raw_input_contents),
        );
        if !raw.is_empty() && raw.len() != tensors.len() {
            let reason = format!("there are {} for {} inputs", raw.len(), tensors.len());
            return Err(BadField::new("raw_input_contents", reason));
        }
        let mut found: Vec<(&'static str, Elements)> = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            let (name, _) = INPUTS
                .iter()
                .find(|(name, _)| *name == tensor.name)
                .ok_or_else(|| {
                    let named: String = tensor.name.chars().take(64).collect();
                    BadField::new("inputs", format!("there is no input {named:?}"))
                })?;
            if found.iter().any(|(other, _)| other == name) {
                return Err(BadField::new(name, "it is given twice"));
            }
            let elements = elements(tensor, raw.get(index).map(Vec::as_slice))
                .map_err(|reason| BadField::new(name, reason))?;
            found.push((name, elements));
        }
        for (name, _) in INPUTS {
            let given = found.iter().any(|(other, _)| *other == name);
            let parameter = request.parameters.remove(name);
            let choice = parameter.and_then(|parameter| parameter.parameter_choice);
            if let Some(choice) = choice.filter(|_| !given) {
                found.push((name, one(choice)));
            }
        }
        Ok(Inputs(found))
    }

    fn take(&mut self, name: &str) -> Option<Elements> {
        let at = self.0.iter().position(|(other, _)| *other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// The texts of `name`.
    pub fn texts(&mut self, name: &'static str) -> Result<Vec<String>, BadField> {
        let bad = |reason| BadField::new(name, reason);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Elements::Bytes(texts)) => texts
                .into_iter()
                .map(|text| String::from_utf8(text).map_err(|_| bad("it is not UTF-8")))
                .collect(),
            Some(_) => Err(bad("it is not of datatype BYTES")),
        }
    }

    /// The one element of `name`, if it is given, as `read` takes it.
    fn one<T>(
        &mut self,
        name: &'static str,
        what: &str,
        read: impl Fn(&Elements) -> Option<T>,
    ) -> Result<Option<T>, BadField> {
        let Some(elements) = self.take(name) else {
            return Ok(None);
        };
        read(&elements)
            .map(Some)
            .ok_or_else(|| BadField::new(name, format!("it is not {what}")))
    }

    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>, BadField> {
        self.one(name, "one BOOL", |elements| match elements {
            Elements::Flags(flags) => <[bool; 1]>::try_from(&**flags).ok().map(|[flag]| flag),
            _ => None,
        })
    }

    pub fn whole<T: TryFrom<i128>>(&mut self, name: &'static str) -> Result<Option<T>, BadField> {
        self.one(
            name,
            "one whole number that fits",
            |elements| match elements {
                Elements::Whole(numbers) => {
                    let [number] = <[i128; 1]>::try_from(&**numbers).ok()?;
                    T::try_from(number).ok()
                }
                _ => None,
            },
        )
    }

    pub fn real(&mut self, name: &'static str) -> Result<Option<f32>, BadField> {
        self.one(name, "one number", |elements| match elements {
            Elements::Real(numbers) => {
                let [number] = <[f64; 1]>::try_from(&**numbers).ok()?;
                Some(number as f32)
            }
            Elements::Whole(numbers) => {
                let [number] = <[i128; 1]>::try_from(&**numbers).ok()?;
                Some(number as f32)
            }
            _ => None,
        })
    }
}

fn one(choice: ParameterChoice) -> Elements {
    match choice {
        ParameterChoice::BoolParam(flag) => Elements::Flags(vec![flag]),
        ParameterChoice::Int64Param(number) => Elements::Whole(vec![number.into()]),
        ParameterChoice::Uint64Param(number) => Elements::Whole(vec![number.into()]),
        ParameterChoice::DoubleParam(number) => Elements::Real(vec![number]),
        ParameterChoice::StringParam(text) => Elements::Bytes(vec![text.into_bytes()]),
    }
}

fn elements(tensor: &InferInputTensor, raw: Option<&[u8]>) -> Result<Elements, String> {
    if tensor.parameters.contains_key("shared_memory_region") {
        return Err("there is no shared memory".to_owned());
    }
    let size = |all: i64, &one: &i64| (one > 0).then(|| all.checked_mul(one)).flatten();
    let count = tensor.shape.iter().try_fold(1, size);
    let count = count
        .filter(|&count| count <= MOST_ELEMENTS)
        .ok_or_else(|| format!("its shape does not have 1 to {MOST_ELEMENTS} elements"))?
        as usize;
    let found = match (raw, &tensor.contents) {
        (Some(_), Some(_)) => return Err("it has contents of both kinds".to_owned()),
        (Some(raw), None) => from_raw(&tensor.datatype, raw)?,
        (None, Some(contents)) => from_contents(&tensor.datatype, contents)?,
        (None, None) => return Err("it has no contents".to_owned()),
    };
    let length = match &found {
        Elements::Flags(list) => list.len(),
        Elements::Whole(list) => list.len(),
        Elements::Real(list) => list.len(),
        Elements::Bytes(list) => list.len(),
    };
    match length == count {
        true => Ok(found),
        false => Err(format!("it has {length} elements and its shape {count}")),
    }
}

fn unknown(datatype: &str) -> String {
    let datatype: String = datatype.chars().take(16).collect();
    format!("its datatype {datatype:?} is none of a text, a flag or a number")
}

fn from_contents(datatype: &str, contents: &pb::InferTensorContents) -> Result<Elements, String> {
    fn whole<T: Copy + Into<i128>>(list: &[T]) -> Elements {
        Elements::Whole(list.iter().map(|&one| one.into()).collect())
    }
    Ok(match datatype {
        "BOOL" => Elements::Flags(contents.bool_contents.clone()),
        "INT8" | "INT16" | "INT32" => whole(&contents.int_contents),
        "INT64" => whole(&contents.int64_contents),
        "UINT8" | "UINT16" | "UINT32" => whole(&contents.uint_contents),
        "UINT64" => whole(&contents.uint64_contents),
        "FP32" => Elements::Real(contents.fp32_contents.iter().map(|&x| x.into()).collect()),
        "FP64" => Elements::Real(contents.fp64_contents.clone()),
        "BYTES" => Elements::Bytes(contents.bytes_contents.clone()),
        other => return Err(unknown(other)),
    })
}

/// Elements of `N` bytes.
fn pieces<const N: usize, T>(raw: &[u8], read: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
    let (pieces, rest) = raw.as_chunks::<N>();
    match rest.is_empty() {
        true => Ok(pieces.iter().map(|piece| read(*piece)).collect()),
        false => Err(format!(
            "it has {} bytes, which are not whole elements of {N}",
            raw.len()
        )),
    }
}

fn from_raw(datatype: &str, raw: &[u8]) -> Result<Elements, String> {
    Ok(match datatype {
        "BOOL" => Elements::Flags(raw.iter().map(|&byte| byte != 0).collect()),
        "INT8" => Elements::Whole(pieces(raw, |b| i8::from_le_bytes(b).into())?),
        "INT16" => Elements::Whole(pieces(raw, |b| i16::from_le_bytes(b).into())?),
        "INT32" => Elements::Whole(pieces(raw, |b| i32::from_le_bytes(b).into())?),
        "INT64" => Elements::Whole(pieces(raw, |b| i64::from_le_bytes(b).into())?),
        "UINT8" => Elements::Whole(pieces(raw, |b| u8::from_le_bytes(b).into())?),
        "UINT16" => Elements::Whole(pieces(raw, |b| u16::from_le_bytes(b).into())?),
        "UINT32" => Elements::Whole(pieces(raw, |b| u32::from_le_bytes(b).into())?),
        "UINT64" => Elements::Whole(pieces(raw, |b| u64::from_le_bytes(b).into())?),
        "FP32" => Elements::Real(pieces(raw, |b| f32::from_le_bytes(b).into())?),
        "FP64" => Elements::Real(pieces(raw, f64::from_le_bytes)?),
        "BYTES" => Elements::Bytes(strings(raw)?),
        other => return Err(unknown(other)),
    })
}

/// Strings with their lengths before them.
fn strings(mut raw: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw
            .split_first_chunk()
            .ok_or("it ends within a length of 4 bytes")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (text, rest) = rest
            .split_at_checked(length)
            .ok_or("it ends before the length that it says")?;
        found.push(text.to_vec());
        raw = rest;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, datatype: &str, shape: &[i64], raw: &[u8]) -> Result<Inputs, BadField> {
        let tensor = InferInputTensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: shape.into(),
            ..InferInputTensor::default()
        };
        Inputs::read(&mut pb::ModelInferRequest {
            inputs: vec![tensor],
            raw_input_contents: vec![raw.into()],
            ..pb::ModelInferRequest::default()
        })
    }

    #[test]
    fn tensors_are_read_as_their_datatypes_say() {
        let mut text = request("text_input", "BYTES", &[1, 1], b"\x02\0\0\0ab").expect("text");
        assert_eq!(text.texts("text_input").expect("text"), ["ab"]);
        for (datatype, raw) in [
            ("INT32", &7i32.to_le_bytes()[..]),
            ("INT64", &7i64.to_le_bytes()),
            ("UINT8", &[7]),
            ("UINT64", &7u64.to_le_bytes()),
        ] {
            let mut found = request("max_tokens", datatype, &[1], raw).expect(datatype);
            assert_eq!(found.whole::<u32>("max_tokens").expect("one"), Some(7));
        }
        let mut half = request("top_p", "FP64", &[], &0.5f64.to_le_bytes()).expect("half");
        assert_eq!(half.real("top_p").expect("one"), Some(0.5));
        let mut flag = request("stream", "BOOL", &[1], &[1]).expect("flag");
        assert_eq!(flag.flag("stream").expect("one"), Some(true));
        assert_eq!(flag.flag("stream").expect("none"), None);
    }

    #[test]
    fn tensors_that_are_not_what_they_say_are_refused_by_name() {
        let text = b"\x02\0\0\0ab".as_slice();
        for (name, datatype, shape, raw) in [
            ("text_input", "BYTES", &[2][..], text),
            ("text_input", "BYTES", &[0], b""),
            ("text_input", "BYTES", &[-1], text),
            ("text_input", "BYTES", &[i64::MAX, 4], text),
            ("text_input", "BYTES", &[1], b"\x02\0"),
            ("text_input", "BYTES", &[1], b"\xFF\xFF\xFF\xFFab"),
            ("text_input", "BYTES", &[1], b"\x03\0\0\0ab"),
            ("text_input", "FP16", &[1], b"ab"),
            ("max_tokens", "INT32", &[1], b"abc"),
            ("max_tokens", "INT32", &[1], b""),
        ] {
            let error = request(name, datatype, shape, raw).expect_err(name);
            assert_eq!(error.field, name, "{error}");
        }
        let error = request("logits", "BYTES", &[1], text).expect_err("unknown");
        assert_eq!(error.field, "inputs");
        let mut odd = request("text_input", "BYTES", &[1], b"\x02\0\0\0\xFF\xFE").expect("bytes");
        odd.texts("text_input").expect_err("not UTF-8");
        let mut odd = request("max_tokens", "INT32", &[1], &(-1i32).to_le_bytes()).expect("one");
        odd.whole::<u32>("max_tokens").expect_err("negative");
        let mut odd = request("max_tokens", "FP32", &[1], &1f32.to_le_bytes()).expect("one");
        odd.whole::<u32>("max_tokens").expect_err("not whole");
    }
}
