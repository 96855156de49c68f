//! A macro for rows with named columns.
//!
//! It replaces sqlx's `FromRow` derive. With that procedural macro, cargo compiles sqlx, its MySQL driver and tokio a
//! second time, for use at compile time.

/// Declares a struct that is read from a database row. Each field is read from the column with the same name.
macro_rules! row {
    ($(#[$attribute:meta])* struct $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$attribute])*
        struct $name {
            $($field: $type,)*
        }

        impl sqlx::FromRow<'_, sqlx::mysql::MySqlRow> for $name {
            fn from_row(row: &sqlx::mysql::MySqlRow) -> sqlx::Result<Self> {
                use sqlx::Row as _;

                Ok(Self { $($field: row.try_get(stringify!($field))?,)* })
            }
        }
    };
}

pub(super) use row;
