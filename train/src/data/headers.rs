//! What the fields of Parquet's headers hold (parquet.thrift of format version 2), for looking at them before the library does.
//!
//! Knows no values. A field that is not listed may hold anything that costs no more than its bytes.

use super::thrift::Kind::{self, Bool, Byte, Bytes, Count, Double, Integer, List, Struct};

/// `PageHeader`.
pub(super) const PAGE: &[Kind] = &[
    Integer,
    Integer,
    Integer,
    Integer,
    Struct(&[Integer, Integer, Integer, Integer, Struct(STATISTICS)]),
    Struct(&[]),
    Struct(&[Integer, Integer, Bool]),
    Struct(&[Integer, Integer, Integer, Integer, Integer, Integer, Bool, Struct(STATISTICS)]),
];

/// `FileMetaData`.
pub(super) const FILE: &[Kind] = &[
    Integer,
    List(&Struct(SCHEMA_ELEMENT)),
    Integer,
    List(&Struct(ROW_GROUP)),
    List(&Struct(KEY_VALUE)),
    Bytes,
    List(&Struct(&[Struct(&[]), Struct(&[])])),
    Struct(&[Struct(ENCRYPTION), Struct(ENCRYPTION)]),
    Bytes,
];

const STATISTICS: &[Kind] = &[Bytes, Bytes, Integer, Integer, Bytes, Bytes, Bool, Bool, Integer];

const SCHEMA_ELEMENT: &[Kind] =
    &[Integer, Integer, Integer, Bytes, Count, Integer, Integer, Integer, Integer, Struct(LOGICAL_TYPE)];

const LOGICAL_TYPE: &[Kind] = &[
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[Integer, Integer]),
    Struct(&[]),
    Struct(TIME),
    Struct(TIME),
    Struct(&[]),
    Struct(&[Byte, Bool]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[]),
    Struct(&[Byte]),
    Struct(&[Bytes]),
    Struct(&[Bytes, Integer]),
];

const TIME: &[Kind] = &[Bool, Struct(&[Struct(&[]), Struct(&[]), Struct(&[])])];

const ROW_GROUP: &[Kind] = &[
    List(&Struct(COLUMN)),
    Integer,
    Integer,
    List(&Struct(&[Integer, Bool, Bool])),
    Integer,
    Integer,
    Integer,
];

const COLUMN: &[Kind] = &[
    Bytes,
    Integer,
    Struct(COLUMN_METADATA),
    Integer,
    Integer,
    Integer,
    Integer,
    Struct(&[Struct(&[]), Struct(&[List(&Bytes), Bytes])]),
    Bytes,
];

const COLUMN_METADATA: &[Kind] = &[
    Integer,
    List(&Integer),
    List(&Bytes),
    Integer,
    Integer,
    Integer,
    Integer,
    List(&Struct(KEY_VALUE)),
    Integer,
    Integer,
    Integer,
    Struct(STATISTICS),
    List(&Struct(&[Integer, Integer, Integer])),
    Integer,
    Integer,
    Struct(&[Integer, List(&Integer), List(&Integer)]),
    Struct(&[Struct(&[Double, Double, Double, Double, Double, Double, Double, Double]), List(&Integer)]),
];

const KEY_VALUE: &[Kind] = &[Bytes, Bytes];

const ENCRYPTION: &[Kind] = &[Bytes, Bytes, Bool];
