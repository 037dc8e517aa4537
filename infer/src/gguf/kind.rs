//! The element types of GGUF: their numbers, the size of their blocks, and who else writes those that are not read here.
//!
//! Knows no file. Invariant: a [`Kind`] that exists has blocks of a known size and a decoder.

use qat_quant::Format;
use qat_quant::kernels::FloatType;

/// How the elements of a tensor are stored, under the names of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(non_camel_case_types, missing_docs, reason = "the names that ggml gives its types")]
pub enum Kind {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    BF16,
    TQ1_0,
    TQ2_0,
    Q2_0,
}

/// Number in the file, elements and bytes of a block.
struct Layout {
    id: u32,
    block_len: usize,
    block_bytes: usize,
}

/// Numbers that are not read: their names, and what has files with them.
const FOREIGN: [(u32, &str, &str); 25] = [
    (9, "Q8_1", "an intermediate of llama.cpp that no file should have"),
    (15, "Q8_K", "an intermediate of llama.cpp that no file should have"),
    (16, "IQ2_XXS", "llama.cpp"),
    (17, "IQ2_XS", "llama.cpp"),
    (18, "IQ3_XXS", "llama.cpp"),
    (19, "IQ1_S", "llama.cpp"),
    (20, "IQ4_NL", "llama.cpp"),
    (21, "IQ3_S", "llama.cpp"),
    (22, "IQ2_S", "llama.cpp"),
    (23, "IQ4_XS", "llama.cpp"),
    (24, "I8", "llama.cpp, for tensors that are no weights"),
    (25, "I16", "llama.cpp, for tensors that are no weights"),
    (26, "I32", "llama.cpp, for tensors that are no weights"),
    (27, "I64", "llama.cpp, for tensors that are no weights"),
    (28, "F64", "llama.cpp"),
    (29, "IQ1_M", "llama.cpp"),
    (31, "Q4_0_4_4", "llama.cpp of 2024, in the order of one processor"),
    (32, "Q4_0_4_8", "llama.cpp of 2024, in the order of one processor"),
    (33, "Q4_0_8_8", "llama.cpp of 2024, in the order of one processor"),
    (36, "I2_S", "bitnet.cpp, in the order of one processor"),
    (38, "TL1", "bitnet.cpp, in the order of one processor"),
    (39, "MXFP4", "llama.cpp"),
    (40, "NVFP4", "llama.cpp"),
    (41, "Q1_0", "llama.cpp since 2026"),
    (142, "PQ2_0", "PrismML's llama.cpp"),
];

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::BF16,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::Q2_0,
    ];

    /// The type with the number `id`.
    ///
    /// # Errors
    /// Any other number: its name, who writes it, and what can be done about it.
    pub fn of(id: u32) -> Result<Self, String> {
        if let Some(kind) = Self::ALL.into_iter().find(|kind| kind.id() == id) {
            return Ok(kind);
        }
        let readable = Self::ALL.map(Self::name).join(", ");
        let (name, writer) = FOREIGN
            .into_iter()
            .find(|(known, ..)| *known == id)
            .map_or(("of a name unknown here", "a newer or another tool"), |(_, name, writer)| {
                (name, writer)
            });
        Err(format!(
            "type {id} ({name}, written by {writer}) is not read; want one of {readable}: convert the original model to F16 or Q8_0 with \
             llama.cpp"
        ))
    }

    fn layout(self) -> Layout {
        let (id, block_len, block_bytes) = match self {
            Self::F32 => (0, 1, 4),
            Self::F16 => (1, 1, 2),
            Self::Q4_0 => (2, 32, 18),
            Self::Q4_1 => (3, 32, 20),
            Self::Q5_0 => (6, 32, 22),
            Self::Q5_1 => (7, 32, 24),
            Self::Q8_0 => (8, 32, 34),
            Self::Q2_K => (10, 256, 84),
            Self::Q3_K => (11, 256, 110),
            Self::Q4_K => (12, 256, 144),
            Self::Q5_K => (13, 256, 176),
            Self::Q6_K => (14, 256, 210),
            Self::BF16 => (30, 1, 2),
            Self::TQ1_0 => (34, 256, 54),
            Self::TQ2_0 => (35, 256, 66),
            Self::Q2_0 => (42, 64, 18),
        };
        Layout { id, block_len, block_bytes }
    }

    /// Its number in files.
    pub fn id(self) -> u32 {
        self.layout().id
    }

    /// Elements of a block; a row is a multiple of it.
    pub fn block_len(self) -> usize {
        self.layout().block_len
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.layout().block_bytes
    }

    /// Its name in ggml.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::BF16 => "BF16",
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
            Self::Q2_0 => "Q2_0",
        }
    }

    /// What `general.file_type` says of a file most of whose matrices are of this type.
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q2_K => 10,
            Self::Q3_K => 12,
            Self::Q4_K => 15,
            Self::Q5_K => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
            Self::TQ1_0 => 36,
            Self::TQ2_0 => 37,
            Self::Q2_0 => 41,
        }
    }

    /// The format whose blocks are these bytes, if there is one.
    pub fn format(self) -> Option<Format> {
        match self {
            Self::Q4_0 => Some(Format::Int4G32),
            Self::Q8_0 => Some(Format::Int8G32),
            Self::Q2_0 => Some(Format::TernaryG64),
            Self::TQ2_0 => Some(Format::TernaryG256),
            _ => None,
        }
    }

    /// The float type that it is, if it is one.
    pub fn float(self) -> Option<FloatType> {
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::BF16 => Some(FloatType::BF16),
            _ => None,
        }
    }

    /// Bytes of a tensor of `elements` in rows of `row`, if its rows are whole blocks and the number fits.
    pub fn bytes(self, row: usize, elements: usize) -> Option<usize> {
        let whole = row.is_multiple_of(self.block_len()) && elements.is_multiple_of(self.block_len());
        whole.then(|| (elements / self.block_len()).checked_mul(self.block_bytes())).flatten()
    }
}

impl From<FloatType> for Kind {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::BF16 => Self::BF16,
        }
    }
}
