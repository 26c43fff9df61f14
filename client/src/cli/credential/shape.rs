//! The shape of a provider key: its public beginning and its secret, and a random key of the same shape to probe with.
//!
//! The beginning that every key of a kind shares is no secret; it stands in the policy and in each request's head. What is not
//! known to be public counts as secret: that costs nothing but a longer hole.
use crate::cli::output::{Failure, Outcome};
use quorate_core::policy::CredentialScheme;
use quorate_splitkey::head::PUBLIC_PREFIX_MAX;
use quorate_splitkey::share::{SECRET_MAX, SECRET_MIN, Secret, ShareError};
use zeroize::Zeroizing;

/// Beginnings that providers publish, each before those it begins with.
const KNOWN_PREFIXES: [&str; 21] = [
    "sk-ant-api03-",
    "sk-ant-oat01-",
    "sk-ant-",
    "sk-proj-",
    "sk-svcacct-",
    "sk-admin-",
    "sk-or-v1-",
    "sk-",
    "gsk_",
    "xai-",
    "AIza",
    "hf_",
    "pplx-",
    "nvapi-",
    "r8_",
    "fw_",
    "csk-",
    "tgp_v1_",
    "ghp_",
    "github_pat_",
    "dapi",
];
/// Consecutive bytes of a secret that an answer must not repeat.
pub(crate) const ECHO_BYTES: usize = 8;

/// A key taken apart. No `Debug`.
pub(crate) struct Key {
    pub(crate) public_prefix: String,
    pub(crate) secret: Secret,
}

impl Key {
    /// Splits a key; `prefix` is the admin's word on what is public.
    pub(crate) fn parse(key: &Zeroizing<Vec<u8>>, prefix: Option<&str>) -> Outcome<Self> {
        let prefix = match prefix {
            Some(prefix) if key.starts_with(prefix.as_bytes()) => prefix,
            Some(prefix) => {
                return Err(Failure::new(
                    format!("the key does not begin with {prefix:?}"),
                    "check --public-prefix, and that it is the right key",
                ));
            }
            None => KNOWN_PREFIXES.into_iter().find(|p| key.starts_with(p.as_bytes())).unwrap_or_default(),
        };
        if prefix.len() > PUBLIC_PREFIX_MAX || !prefix.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Failure::new(
                format!("a public prefix is up to {PUBLIC_PREFIX_MAX} visible ASCII characters"),
                "give a shorter --public-prefix; what is not public is secret",
            ));
        }
        let secret = Zeroizing::new(key.get(prefix.len()..).unwrap_or_default().to_vec());
        let secret = Secret::new(secret).map_err(|e| match e {
            ShareError::Length { length } => Failure::new(
                format!(
                    "the secret behind the public prefix {prefix:?} has {length} bytes; {SECRET_MIN} to {SECRET_MAX} can be split"
                ),
                "check the key; if the prefix is wrong, name the right one with --public-prefix (it may be empty)",
            ),
            ShareError::NotVisible => Failure::new(
                "the key has a byte that is not visible ASCII",
                "a space or a second line end, perhaps: give the key alone",
            ),
        })?;
        Ok(Self { public_prefix: prefix.to_owned(), secret })
    }
}

/// The scheme of a dialect's own provider.
pub(crate) fn default_scheme(dialect: &str) -> CredentialScheme {
    match dialect {
        "anthropic" => CredentialScheme::XApiKey,
        "gemini" => CredentialScheme::XGoogApiKey,
        _ => CredentialScheme::Bearer,
    }
}

/// A random secret of the same shape: digits, lower and upper case where the secret has them, other signs as they are. A
/// provider that looks at a key's form before it looks it up gets one that passes.
pub(crate) fn twin(secret: &Secret) -> Outcome<Zeroizing<Vec<u8>>> {
    let bytes = secret.expose_bytes();
    let random = |count: usize| {
        let mut random = Zeroizing::new(vec![0; count]);
        aws_lc_rs::rand::fill(&mut random).map(|()| random).map_err(|_| crate::Error::NoRandomness)
    };
    // Taken modulo 26 and 10: slightly uneven, and nothing rests on it.
    let class = |byte: u8| match byte {
        b'0'..=b'9' => Some((b'0', 10)),
        b'a'..=b'z' => Some((b'a', 26)),
        b'A'..=b'Z' => Some((b'A', 26)),
        _ => None,
    };
    let lower = Some((b'a', 26));
    // Hardly anything random: then the shape gives way, for what is sent must not be the secret.
    let shapeless = bytes.iter().filter(|b| class(**b).is_some()).count() < SECRET_MIN / 2;
    let mut twin = random(bytes.len())?;
    for (to, from) in twin.iter_mut().zip(bytes) {
        *to = match if shapeless { lower } else { class(*from) } {
            Some((first, count)) => first + *to % count,
            None => *from,
        };
    }
    Ok(twin)
}

/// A random secret of a length, for when the secret is not at hand.
pub(crate) fn stranger(length: usize) -> Outcome<Zeroizing<Vec<u8>>> {
    let mut random = Zeroizing::new(vec![0; length]);
    aws_lc_rs::rand::fill(&mut random).map_err(|_| crate::Error::NoRandomness)?;
    random.iter_mut().for_each(|b| *b = b'a' + *b % 26);
    Ok(random)
}

/// Whether an answer repeats [`ECHO_BYTES`] or more consecutive bytes of the secret sent.
pub(crate) fn echoes(answer: &[u8], secret: &[u8]) -> bool {
    let parts: std::collections::HashSet<&[u8]> = secret.windows(ECHO_BYTES).collect();
    answer.windows(ECHO_BYTES).any(|w| parts.contains(w))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, prefix: Option<&str>) -> Outcome<Key> {
        Key::parse(&Zeroizing::new(key.as_bytes().to_vec()), prefix)
    }

    const SECRET: &str = "abcDEF0123456789-_xyz";

    #[test]
    fn known_beginnings_are_told_from_the_secret() {
        for prefix in KNOWN_PREFIXES.into_iter().chain([""]) {
            let key = parse(&format!("{prefix}ZZ{SECRET}"), None).ok().unwrap();
            assert_eq!(key.public_prefix, prefix);
            assert_eq!(key.secret.expose_bytes(), format!("ZZ{SECRET}").as_bytes());
        }
        // The admin knows better, either way.
        let key = parse(&format!("sk-house-{SECRET}"), Some("sk-house-")).ok().unwrap();
        assert_eq!(key.public_prefix, "sk-house-");
        let key = parse(&format!("sk-{SECRET}"), Some("")).ok().unwrap();
        assert_eq!((key.public_prefix.as_str(), key.secret.len()), ("", SECRET.len() + 3));
    }

    #[test]
    fn no_known_beginning_hides_behind_a_shorter_one() {
        for (at, prefix) in KNOWN_PREFIXES.iter().enumerate() {
            let hidden = KNOWN_PREFIXES.iter().take(at).find(|p| prefix.starts_with(**p));
            assert_eq!(hidden, None, "{prefix}");
        }
    }

    #[test]
    fn what_cannot_be_split_is_refused_and_not_shown() {
        let table = [
            ("sk-ant-api03-tooshort".to_owned(), None, "has 8 bytes"),
            (format!("sk-{}", "x".repeat(1025)), None, "has 1025 bytes"),
            (format!("sk-{SECRET} "), None, "not visible ASCII"),
            (format!("sk-{SECRET}\u{e9}"), None, "not visible ASCII"),
            (format!("sk-{SECRET}"), Some("pk-"), "does not begin with"),
        ];
        for (key, prefix, expected) in table {
            let lines = parse(&key, prefix).err().unwrap().lines().join("\n");
            assert!(lines.contains(expected), "{lines}");
            assert!(!lines.contains(SECRET) && !lines.contains("tooshort"), "{lines}");
        }
    }

    #[test]
    fn a_twin_has_the_shape_and_nothing_of_the_secret() {
        let text = "abcDEF0123456789-_xyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let secret = Secret::new(Zeroizing::new(text.as_bytes().to_vec())).ok().unwrap();
        let twin = super::twin(&secret).unwrap();
        assert_eq!(twin.len(), text.len());
        let class = |b: u8| (b.is_ascii_digit(), b.is_ascii_lowercase(), b.is_ascii_uppercase());
        assert!(twin.iter().zip(text.bytes()).all(|(t, s)| class(*t) == class(s)));
        assert_eq!(&twin[16..18], b"-_");
        assert!(!echoes(&twin, text.as_bytes()));
        assert_ne!(super::twin(&secret).unwrap(), twin);
        // A secret of signs alone is not sent.
        let signs = Secret::new(Zeroizing::new(b"-_.~-_.~-_.~-_.~".to_vec())).ok().unwrap();
        assert!(super::twin(&signs).unwrap().iter().all(u8::is_ascii_lowercase));
    }

    #[test]
    fn eight_bytes_in_a_row_are_an_echo_and_seven_are_none() {
        let secret = b"abcdefghijklmnop";
        for (answer, expected) in [
            (&b"Incorrect API key provided: sk-...jklmnop"[..], false),
            (b"key ijklmnop is wrong", true),
            (b"abcdefg hijklmn op", false),
            (b"xxabcdefghxx", true),
            (b"", false),
            (b"abcdefgh", true),
        ] {
            assert_eq!(echoes(answer, secret), expected, "{}", String::from_utf8_lossy(answer));
        }
    }
}
