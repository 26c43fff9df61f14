//! A bounded cursor over bytes somebody else wrote. Every read either yields exactly what was asked or an error.

/// Input ended early, or a length exceeded its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// Fewer bytes are left than the field needs.
    Short,
    /// A length field says more than the bound of its field.
    TooLong,
}

/// The bytes not read yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], ReadError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(ReadError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(ReadError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ReadError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn u16_be(&mut self) -> Result<u16, ReadError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32_be(&mut self) -> Result<u32, ReadError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64_be(&mut self) -> Result<u64, ReadError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn u16_le(&mut self) -> Result<u16, ReadError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32_le(&mut self) -> Result<u32, ReadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A `TPM2B`: a 16-bit big-endian size of at most `max`, then that many bytes.
    pub(crate) fn tpm2b(&mut self, max: usize) -> Result<&'a [u8], ReadError> {
        let len = usize::from(self.u16_be()?);
        if len > max {
            return Err(ReadError::TooLong);
        }
        self.take(len)
    }

    /// A 32-bit little-endian size of at most `max`, then that many bytes.
    pub(crate) fn sized_le(&mut self, max: usize) -> Result<&'a [u8], ReadError> {
        let len = usize::try_from(self.u32_le()?).map_err(|_| ReadError::TooLong)?;
        if len > max {
            return Err(ReadError::TooLong);
        }
        self.take(len)
    }
}
