# One static library per folder. Includes are written from the root: "quant/tensor.hpp".
add_library(moeref_options INTERFACE)
target_compile_options(moeref_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion
  # gcc 12 sees overlaps in std::string concatenations that are none (gcc bug 105329).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
  $<$<BOOL:${MOEREF_WERROR}>:-Werror>)

function(moeref_add_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  add_library(moeref_${name} STATIC ${arg_SOURCES})
  add_library(moeref::${name} ALIAS moeref_${name})
  set_target_properties(moeref_${name} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON)
  target_compile_features(moeref_${name} PUBLIC cxx_std_20)
  target_include_directories(moeref_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/moeref>)
  target_link_libraries(moeref_${name} PUBLIC ${arg_LINKS}
                        PRIVATE $<BUILD_INTERFACE:moeref_options> ${arg_PRIVATE_LINKS})
endfunction()
