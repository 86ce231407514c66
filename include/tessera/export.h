/* Marks what the shared library exports. */
#ifndef TESSERA_EXPORT_H_
#define TESSERA_EXPORT_H_

#define TESSERA_API __attribute__((visibility("default")))

#endif
