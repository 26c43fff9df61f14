//! Who a route's server is: a DNS name or an IP address, in the one spelling that SNI, certificate check and `host`
//! header share. Refuses every other spelling (upper case, trailing dot, a name that some resolver reads as a
//! number), so that comparing bytes is comparing hosts.

use std::net::IpAddr;

/// Longest DNS name (RFC 1035 §2.3.4, without the root label).
pub const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A server's name, canonical.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerHost {
    /// A lower-case DNS name of letters, digits and hyphens. Sent as SNI.
    Name(DnsName),
    /// An IP address. RFC 6066 §3 forbids it in SNI, so its hellos must carry none.
    Address(IpAddr),
}

/// A DNS name whose spelling was checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsName(String);

impl DnsName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no [`ServerHost`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Empty, or above [`NAME_MAX`].
    #[error("host name has {length} bytes")]
    Length {
        /// The bytes given.
        length: usize,
    },
    /// A label is empty, too long, has a character other than a-z 0-9 and inner hyphens, or the last is numeric.
    #[error("host name is not in canonical form (lower case, no trailing dot)")]
    Spelling,
    /// An IP address in another spelling than the canonical one (RFC 5952).
    #[error("IP address is not in canonical form")]
    Address,
}

impl std::str::FromStr for ServerHost {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return if address.to_string() == text {
                Ok(Self::Address(address))
            } else {
                Err(HostError::Address)
            };
        }
        if text.is_empty() || text.len() > NAME_MAX {
            return Err(HostError::Length { length: text.len() });
        }
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= LABEL_MAX
                && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        if !text.split('.').all(label_ok) || text.rsplit('.').next().is_none_or(numeric) {
            return Err(HostError::Spelling);
        }
        Ok(Self::Name(DnsName(text.to_owned())))
    }
}

impl std::fmt::Display for ServerHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name.as_str()),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_each() {
        for good in ["localhost", "api.openai.com", "x-1.example", "127.0.0.1", "::1", "10.example"] {
            assert_eq!(good.parse::<ServerHost>().unwrap().to_string(), good);
        }
        let long = "a.".repeat(127);
        let cases = [
            ("", HostError::Length { length: 0 }),
            (long.as_str(), HostError::Length { length: 254 }),
            ("API.openai.com", HostError::Spelling),
            ("openai.com.", HostError::Spelling),
            ("a..b", HostError::Spelling),
            ("-a.b", HostError::Spelling),
            ("a_b.c", HostError::Spelling),
            ("127.1", HostError::Spelling),
            ("a b", HostError::Spelling),
            ("[::1]", HostError::Spelling),
            ("::0001", HostError::Address),
        ];
        for (bad, expected) in cases {
            assert_eq!(bad.parse::<ServerHost>(), Err(expected), "{bad}");
        }
    }
}
