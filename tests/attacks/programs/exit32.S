# A 32-bit program: its first call is exit(42).
    .globl _start
_start:
    movl $1, %eax
    movl $42, %ebx
    int $0x80
    .section .note.GNU-stack, "", @progbits
