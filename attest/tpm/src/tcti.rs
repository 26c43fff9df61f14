//! Where the TPM is: the two TCTI forms that quorate supports, parsed strictly.
//!
//! tpm2-tss falls back to a default address on options it does not know (`swtpm:path=…` silently becomes
//! localhost:2321), and a node would then attest with somebody else's TPM. So only these are accepted:
//! `device:/dev/…` and `swtpm:host=IP,port=N`, the latter on this machine alone: nothing protects that connection.
use crate::TpmError;
use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};
use tss_esapi::tcti_ldr::TctiNameConf;

/// A TPM's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tcti {
    /// A character device, normally `/dev/tpmrm0` (the kernel's resource manager).
    Device(PathBuf),
    /// A software TPM; its control channel is at `port` + 1.
    Swtpm {
        /// Address of the swtpm process.
        host: IpAddr,
        /// Its command port.
        port: u16,
    },
}

impl Tcti {
    pub(crate) fn name_conf(&self) -> tss_esapi::Result<TctiNameConf> {
        TctiNameConf::from_str(&self.to_string())
    }
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "device:{}", path.display()),
            Self::Swtpm { host, port } => write!(f, "swtpm:host={host},port={port}"),
        }
    }
}

impl FromStr for Tcti {
    type Err = TpmError;

    fn from_str(given: &str) -> Result<Self, TpmError> {
        let refuse = |reason| TpmError::TctiUnsupported { given: given.to_owned(), reason };
        if let Some(path) = given.strip_prefix("device:") {
            if !path.starts_with("/dev/") || path.bytes().any(|b| b.is_ascii_control()) {
                return Err(refuse("a device is a path below /dev/"));
            }
            return Ok(Self::Device(PathBuf::from(path)));
        }
        let Some(options) = given.strip_prefix("swtpm:") else {
            return Err(refuse("expected device:/dev/tpmrm0 or swtpm:host=IP,port=N"));
        };
        let (mut host, mut port) = (None, None);
        for option in options.split(',') {
            match option.split_once('=') {
                Some(("host", value)) if host.is_none() => {
                    host = Some(value.parse().map_err(|_| refuse("host must be an IP address"))?);
                }
                Some(("port", value)) if port.is_none() => {
                    port = Some(value.parse().map_err(|_| refuse("port must be a number below 65536"))?);
                }
                Some(("host" | "port", _)) => return Err(refuse("an option is given twice")),
                _ => return Err(refuse("swtpm takes host and port only (path= would be ignored silently)")),
            }
        }
        match (host, port) {
            (Some(host), _) if !IpAddr::is_loopback(&host) => {
                Err(refuse("host must be a loopback address: the connection is not protected"))
            }
            (Some(host), Some(port)) if port != 0 && port != u16::MAX => Ok(Self::Swtpm { host, port }),
            (Some(_), Some(_)) => Err(refuse("the control channel is at port + 1: 1 to 65534")),
            _ => Err(refuse("swtpm needs both host and port")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_supported_forms_are_read_and_written_alike() {
        for good in ["device:/dev/tpmrm0", "swtpm:host=127.0.0.1,port=2421", "swtpm:host=::1,port=2421"] {
            let tcti: Tcti = good.parse().unwrap();
            assert_eq!(tcti.to_string(), good);
            // What tpm2-tss is given is the same, too.
            let given = std::ffi::CString::try_from(tcti.name_conf().unwrap()).unwrap();
            assert_eq!(given.to_str().unwrap(), good);
        }
    }

    #[test]
    fn whatever_would_fall_back_silently_is_refused() {
        for bad in [
            "",
            "device",
            "device:",
            "device:tpmrm0",
            "swtpm",
            "swtpm:",
            "swtpm:path=/run/tpm.sock",
            "swtpm:host=127.0.0.1",
            "swtpm:port=2321",
            "swtpm:host=127.0.0.1,port=0",
            "swtpm:host=127.0.0.1,port=65535",
            "swtpm:host=127.0.0.1,port=65536",
            "swtpm:host=localhost,port=2321",
            "swtpm:host=192.0.2.1,port=2321",
            "swtpm:host=0.0.0.0,port=2321",
            "swtpm:host=127.0.0.1,port=2321,port=2322",
            "swtpm:host=127.0.0.1,port=2321,path=/x",
            "mssim:host=127.0.0.1,port=2321",
            "tabrmd:",
        ] {
            assert!(matches!(bad.parse::<Tcti>(), Err(TpmError::TctiUnsupported { .. })), "{bad}");
        }
    }
}
