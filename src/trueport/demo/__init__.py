"""The whole story on real data: train, convert, verify, and catch a real converter bug."""
