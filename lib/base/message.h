/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sentence behind an error code: what was wrong, where, what to do. Each thread has one; the
 * place that knows most writes it, callers forward the code unchanged.
 */
#ifndef DCMEM_MESSAGE_H
#define DCMEM_MESSAGE_H

/* Returns `result`, so that `return message_set(-EIO, "...")` reads well. */
int message_set(int result, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Puts "text: " before what is there: file and tensor names added on the way up. */
int message_prefix(int result, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *message_get(void);
void message_clear(void);

#endif
