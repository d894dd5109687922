//! Passwords stay where they were put.
