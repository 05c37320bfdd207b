//! `adapter_config.json` of the `peft` library, as far as it says what an adapter adds up to.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde_json::Value;

use super::AdapterError;

#[derive(Debug, Deserialize)]
pub(super) struct AdapterConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_qalora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: Pattern<usize>,
    #[serde(default)]
    alpha_pattern: Pattern<f64>,
    layer_replication: Option<Value>,
    trainable_token_indices: Option<Value>,
    target_parameters: Option<Value>,
    #[serde(default)]
    init_lora_weights: Value,
}

/// Ranks above this are no adapter's.
const MOST_RANK: usize = 1 << 14;
/// Beginnings of what `init_lora_weights` may be where the base's own weights were changed with it.
const CHANGES_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl AdapterConfig {
    /// # Errors
    /// Whatever changes what an adapter adds up to and is not known here, by the field that asks for it.
    pub fn read(text: &[u8]) -> Result<Self, AdapterError> {
        let config: AdapterConfig =
            serde_json::from_slice(text).map_err(|error| AdapterError::Config {
                detail: error.to_string(),
            })?;
        let absent = |value: &Option<Value>| match value {
            None | Some(Value::Null) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(items)) => items.is_empty(),
            Some(_) => false,
        };
        let changes_base = config.init_lora_weights.as_str().is_some_and(|how| {
            let how = how.to_ascii_lowercase();
            CHANGES_BASE.iter().any(|begins| how.starts_with(begins))
        });
        let asked = [
            ("peft_type", !config.peft_type.eq_ignore_ascii_case("lora")),
            ("use_dora", config.use_dora),
            ("use_qalora", config.use_qalora),
            ("fan_in_fan_out", config.fan_in_fan_out),
            ("layer_replication", !absent(&config.layer_replication)),
            (
                "trainable_token_indices",
                !absent(&config.trainable_token_indices),
            ),
            ("target_parameters", !absent(&config.target_parameters)),
            ("init_lora_weights", changes_base),
        ];
        if let Some((field, _)) = asked.into_iter().find(|(_, asked)| *asked) {
            return Err(AdapterError::Unserved { field });
        }
        for (field, keys) in [
            ("rank_pattern", config.rank_pattern.keys()),
            ("alpha_pattern", config.alpha_pattern.keys()),
        ] {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if !keys.iter().all(|key| key.bytes().all(plain)) {
                return Err(AdapterError::Unserved { field });
            }
        }
        let ranks = config.rank_pattern.0.iter().map(|(_, rank)| *rank);
        if !ranks
            .chain([config.r])
            .all(|rank| (1..=MOST_RANK).contains(&rank))
        {
            return Err(AdapterError::Unserved { field: "r" });
        }
        let mut alphas = config.alpha_pattern.0.iter().map(|(_, alpha)| *alpha);
        if !config.lora_alpha.is_finite() || !alphas.all(f64::is_finite) {
            return Err(AdapterError::Unserved {
                field: "lora_alpha",
            });
        }
        Ok(config)
    }

    pub fn rank(&self, module: &str) -> usize {
        self.rank_pattern.of(module).unwrap_or(self.r)
    }

    /// What the product of a module's factors is multiplied by.
    pub fn scale(&self, module: &str) -> f32 {
        let (rank, alpha) = (
            self.rank(module) as f64,
            self.alpha_pattern.of(module).unwrap_or(self.lora_alpha),
        );
        let divisor = if self.use_rslora { rank.sqrt() } else { rank };
        (alpha / divisor) as f32
    }
}

/// Values by module, in the file's order: the first key that is a module's path, or the end of it, counts.
#[derive(Debug)]
struct Pattern<T>(Vec<(String, T)>);

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Pattern(Vec::new())
    }
}

impl<T: Copy> Pattern<T> {
    fn of(&self, module: &str) -> Option<T> {
        let ends = |key: &str| {
            let before = module.strip_suffix(key);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let found = self.0.iter().find(|(key, _)| ends(key));
        found.map(|(_, value)| *value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(key, _)| &**key).collect()
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Pattern<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> Visitor<'de> for Entries<T> {
            type Value = Pattern<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("values by module")
            }

            fn visit_unit<E>(self) -> Result<Pattern<T>, E> {
                Ok(Pattern::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Pattern<T>, A::Error> {
                let mut pattern = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    pattern.push(entry);
                }
                Ok(Pattern(pattern))
            }
        }
        deserializer.deserialize_any(Entries(PhantomData))
    }
}
