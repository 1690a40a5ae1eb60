"""What requests and answers carry: encodings, forms, files, media; read, and masked."""
