//! Who asks, and what they may do: API keys with two roles, the same for every protocol.

mod keys;
mod methods;
mod spending;

pub use keys::{ApiKeys, KeysError, KeysFile};
pub use methods::{Need, ROUTES, of_method, of_route};
pub use spending::{Charge, Overspent};

use super::room::ClientName;
use super::status::BadField;
use keys::ApiKey;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use tonic::Status;
use tonic::codegen::http::{Extensions, HeaderMap, HeaderValue, header::AUTHORIZATION};

/// Header in which a proxy in front of the server says who asks.
pub const CLIENT_ID: &str = "choir-client-id";
/// Bytes of it at most.
const LONGEST_CLIENT_ID: usize = 128;

/// What somebody may do; a later one may all that an earlier one may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessRole {
    /// Ask for text.
    #[default]
    Infer,
    /// Change what is served, and see how the server is.
    Admin,
}

/// The other end of a connection; a unix socket has no address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer(pub Option<IpAddr>);

impl Peer {
    /// Whom its address says that it is: nobody can make that up. Of an IPv6 address it is the first half: whoever has one has all that
    /// begin so.
    pub fn client(&self) -> ClientName {
        self.0.map(|address| of_address(address).into())
    }
}

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Whom the engine counts the request for.
    pub client: ClientName,
    pub role: AccessRole,
    key: Option<Arc<ApiKey>>,
}

impl Caller {
    /// Whom the door let in.
    ///
    /// # Errors
    /// INTERNAL where no door was passed: nothing is answered then.
    pub fn of(extensions: &Extensions) -> Result<Caller, Status> {
        let caller = extensions.get::<Caller>().cloned();
        caller.ok_or_else(|| Status::internal("nobody was admitted"))
    }

    /// The name of the key, for the log.
    pub fn name(&self) -> &str {
        self.key.as_ref().map_or("nobody", |key| &key.name)
    }

    /// Counts one request of `tokens` against what the key may have.
    ///
    /// # Errors
    /// `Overspent` where it has no more of that now.
    pub fn charge(&self, tokens: usize) -> Result<Option<Charge>, Overspent> {
        let charge = |key: &Arc<ApiKey>| Charge::new(key.spending.clone(), key.allowance, tokens);
        self.key.as_ref().map(charge).transpose()
    }
}

/// The door that all requests pass.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// None: everybody is an admin.
    keys: Option<Arc<ApiKeys>>,
    /// Whether to believe [`CLIENT_ID`].
    trust_client_id: bool,
}

impl Access {
    pub fn new(keys: Option<Arc<ApiKeys>>, trust_client_id: bool) -> Self {
        Access {
            keys,
            trust_client_id,
        }
    }

    /// Whether everybody is an admin.
    pub fn is_open(&self) -> bool {
        self.keys.is_none()
    }

    /// Who asks, if they may do what `need` says.
    ///
    /// # Errors
    /// UNAUTHENTICATED without a key that is known, PERMISSION_DENIED with one of too small a role, INVALID_ARGUMENT for a client
    /// id that is none.
    pub fn admit(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        need: Need,
    ) -> Result<Caller, Status> {
        let key = match (&self.keys, need) {
            (Some(keys), Need::Role(role)) => {
                let key = keys.find(bearer(headers)?).ok_or_else(unknown)?;
                if key.role < role {
                    return Err(Status::permission_denied(
                        "this takes an admin key, and the key given is of the role infer",
                    ));
                }
                Some(key)
            }
            _ => None,
        };
        let role = match (&self.keys, &key) {
            (None, _) => AccessRole::Admin,
            (Some(_), key) => key.as_ref().map_or(AccessRole::Infer, |key| key.role),
        };
        let client = self.client(headers, peer, key.as_deref())?;
        Ok(Caller { client, role, key })
    }

    /// Where trusted, whom the header names; else the key; else the address of the other end.
    fn client(
        &self,
        headers: &HeaderMap,
        peer: Option<&Peer>,
        key: Option<&ApiKey>,
    ) -> Result<ClientName, BadField> {
        if let Some(id) = headers.get(CLIENT_ID).filter(|_| self.trust_client_id) {
            return match id.to_str() {
                Ok(id) if (1..=LONGEST_CLIENT_ID).contains(&id.len()) => {
                    Ok(Some(format!("id {id}").into()))
                }
                _ => {
                    let reason =
                        format!("it is not 1 to {LONGEST_CLIENT_ID} bytes of printable ASCII");
                    Err(BadField::new(CLIENT_ID, reason))
                }
            };
        }
        if let Some(key) = key {
            return Ok(Some(format!("key {}", key.name).into()));
        }
        Ok(peer.and_then(Peer::client))
    }
}

fn of_address(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            format!("{}/64", Ipv6Addr::from_bits(network))
        }
    }
}

fn unknown() -> Status {
    Status::unauthenticated("the API key is not known")
}

/// The token of the one `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Result<&[u8], Status> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    match (given.next().map(HeaderValue::as_bytes), given.next()) {
        (Some(value), None) => {
            let (scheme, token) = value.split_at_checked(7).ok_or_else(unknown)?;
            match scheme.eq_ignore_ascii_case(b"bearer ") {
                true => Ok(token.trim_ascii()),
                false => Err(Status::unauthenticated(
                    "an API key is given as Authorization: Bearer KEY",
                )),
            }
        }
        (None, _) => Err(Status::unauthenticated(
            "an API key is needed: Authorization: Bearer KEY",
        )),
        (Some(_), Some(_)) => Err(Status::unauthenticated(
            "there are two Authorization headers",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_its_address_and_of_ipv6_the_network() {
        for (address, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ] {
            assert_eq!(of_address(address.parse().expect("address")), expected);
        }
    }
}
