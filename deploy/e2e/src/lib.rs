//! End-to-end and fault tests over deploy/stack.
