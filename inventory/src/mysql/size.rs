//! How much the database holds, for who plans its disk.

use sqlx::{AssertSqlSafe, MySqlPool};

use crate::error::Error;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Rows in it.
    pub rows: u64,
    /// Bytes that it and its indexes take, in whole pages.
    pub bytes: u64,
}

/// Every table, by name. It counts each row: not for a database in service.
///
/// # Errors
/// See [`Error`].
pub async fn tables(pool: &MySqlPool) -> Result<Vec<Table>, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT CAST(table_name AS CHAR) FROM information_schema.tables
         WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' ORDER BY table_name",
    )
    .fetch_all(pool)
    .await?;
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        // The sizes that the server tells are of the last time it looked.
        sqlx::query(AssertSqlSafe(format!("ANALYZE TABLE `{name}`"))).fetch_all(pool).await?;
        let count = AssertSqlSafe(format!("SELECT CAST(COUNT(*) AS UNSIGNED) FROM `{name}`"));
        let rows = sqlx::query_scalar(count).fetch_one(pool).await?;
        let bytes = sqlx::query_scalar(
            "SELECT CAST(data_length + index_length AS UNSIGNED) FROM information_schema.tables
             WHERE table_schema = DATABASE() AND table_name = ?",
        )
        .bind(&name)
        .fetch_one(pool)
        .await?;
        tables.push(Table { name, rows, bytes });
    }
    Ok(tables)
}
