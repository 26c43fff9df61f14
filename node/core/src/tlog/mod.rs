//! RFC 6962 tree, C2SP tlog formats.
